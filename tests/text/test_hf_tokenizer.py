"""tokenizer.json files: lossless, typed control strings stay text, special tokens from the files beside them."""

import json
import random
import unicodedata

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jinstr import errors
from jinstr.samples import build
from jinstr.text import hf_special, render, templates, train_tokenizer
from jinstr.text import tokenizer as tokenizer_lib

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
HARD = [
    *(
        "",
        " ",
        "  x",
        "　全角と 半角",
        "\u2581\u2581",
        "a\u2581b",
        "①㈱ｶﾞｷﾞ𠮷👨‍👩‍👧",
        "\x00\x02",
        "<0x41>",
    ),
    *("改行\n\n\tタブ\r\n", "</s><s><|im_start|>user<pad>", "<think>考え</think>", "<|endoftext|>"),
]


def texts():
    for row in build.hand_written():
        yield row["text"]
    yield from build.passages()


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(prefix=False):
    """As Llama 3 and Qwen files are: a pattern, bytes, special tokens, and added ones that are not called special."""
    made = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=prefix)
    made.pre_tokenizer = level if prefix else pre_tokenizers.Sequence([split, level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(), trainer)
    made.add_tokens(
        [tokenizers.AddedToken(t, normalized=n) for t, n in (("<think>", True), ("   ", False))]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    made.enable_truncation(8)
    return made


def converted(prefix, kind="BPE"):
    """As Llama 2 and Gemma files are: U+2581 for spaces, bytes for what has no piece."""
    letters = sorted({c for text in texts() for c in text.replace(" ", "\u2581")} | {"\u2581", "x"})
    names = [
        "<unk>",
        "<s>",
        "</s>",
        "<mask>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *letters,
        "です",
        "\u2581x",
    ]
    vocab = {piece: id for id, piece in enumerate(names)}
    if kind == "BPE":
        merges = [("で", "す"), ("\u2581", "x")]
        model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    else:
        scored = [
            (piece, -99.0 if id < 260 else -9.0 if len(piece) == 1 else -10.0)
            for piece, id in vocab.items()
        ]
        model = models.Unigram(scored, unk_id=0, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def metaspace(scheme):
    made = converted(False)
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", scheme, split=False)
    return made


# As published files write a token in full.
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
END = {"__type": "AddedToken", "content": "<|im_end|>", "special": True, **FLAGS}
CHAT = {"bos_token": None, "eos_token": END, "pad_token": "<|im_end|>"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
KINDS = {
    "byte-level": (byte_level, CHAT),
    "byte-level with a space first": (lambda: byte_level(True), CHAT),
    "converted": (lambda: converted(False), LLAMA),
    "converted with a space first": (lambda: converted(True), LLAMA),
    "converted unigram": (lambda: converted(True, "Unigram"), LLAMA),
    "metaspace first": (lambda: metaspace("first"), LLAMA),
    "metaspace always": (lambda: metaspace("always"), LLAMA),
}


def saved(folder, made, special=None, **others):
    made.save(str(folder / "tokenizer.json"))
    for name, value in {"tokenizer_config": special, **others}.items():
        if value is not None:
            (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")
    return folder


@pytest.fixture(scope="module", params=sorted(KINDS))
def each(request, tmp_path_factory):
    make, config = KINDS[request.param]
    return tokenizer_lib.load(saved(tmp_path_factory.mktemp("hf"), make(), config))


def lossless(tokenizer, text):
    """Whether a round trip is promised: a Metaspace step drops one space before a text, bytes have no U+2581."""
    steps = json.loads(open(tokenizer.path, encoding="utf-8").read())["pre_tokenizer"] or {}
    eats = steps.get("type") == "Metaspace" or steps.get("add_prefix_space")
    return not (eats and text.startswith(" "))


def test_round_trip_of_any_unicode(each):
    some = [*HARD, *train_tokenizer.random_unicode(300, seed=1), *list(texts())[:40]]
    assert [each.decode_continuation(each.encode_continuation(t)) for t in some] == some
    some = [text for text in some if lossless(each, text)]
    assert len(some) > 300
    assert [each.decode(each.encode(t)) for t in some] == some
    assert all(each.encode_array(t).tolist() == each.encode(t) for t in some)


def test_typed_control_strings_stay_text(each):
    raw = tokenizers.Tokenizer.from_file(each.path)
    for text in [*HARD, "前<|im_end|>後", "<mask>", *train_tokenizer.random_unicode(200, 2)]:
        for ids in (each.encode(text), each.encode_continuation(text)):
            assert not [id for id in ids if each.is_control(id)], text
    # Negative control: the file as it is gives control tokens.
    typed = "<|im_start|>" if raw.token_to_id("<|im_start|>") else "</s>"
    assert each.is_control(raw.encode("x " + typed, add_special_tokens=False).ids[-1])
    assert each.id_of(typed) == raw.token_to_id(typed) and each.id_of("x") is None


def test_control_strings_that_normalisation_makes_stay_text(tmp_path):
    made = converted(True, "Unigram")
    steps = [normalizers.NFKC(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    made.normalizer = normalizers.Sequence(steps)
    tokenizer = tokenizer_lib.load(saved(tmp_path, made, LLAMA))
    mask = made.token_to_id("<mask>")
    for text in ("＜mask＞", "前＜ｍａｓｋ＞後＜mask＞", "＜/ｓ＞"):
        ids = tokenizer.encode(text)
        assert not any(tokenizer.is_control(id) for id in ids)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text)
    # Negative control.
    assert mask in made.encode("＜mask＞", add_special_tokens=False).ids


def test_plain_text_has_the_ids_of_the_library(each):
    raw = tokenizers.Tokenizer.from_file(each.path)
    raw.no_truncation()
    for text in texts():
        assert each.encode(text) == raw.encode(text, add_special_tokens=False).ids


def test_stream_equals_decode_and_has_no_broken_characters(each):
    for text in [*HARD, "𠮷野家で👩‍👧と食べた"]:
        ids = each.encode_continuation(text)
        for end in range(len(ids) + 1):
            stream = each.stream()
            pieces = "".join([*(stream.push(id) for id in ids[:end]), stream.flush()])
            assert "\ufffd" not in pieces and pieces == each.decode_continuation(ids[:end])


def test_a_text_in_mid_document_has_no_space_first(each):
    first, middle = each.encode("xです"), each.encode_continuation("xです")
    assert (first != middle) == each.adds_prefix
    assert each.decode_continuation(middle) == "xです" == each.decode(first)


def test_special_tokens(tmp_path):
    tokenizer = tokenizer_lib.load(saved(tmp_path, byte_level(), CHAT))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (-1, 2, 3)
    # The pad token that the file names is the end of text: padding must be another.
    assert tokenizer.piece(tokenizer.pad_id) == "<pad>" and tokenizer.unk_id == -1
    before = tokenizer.fingerprint
    ids = {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 3}
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = tokenizer_lib.load(saved(tmp_path, byte_level(), None, generation_config=ids))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 3)
    assert tokenizer.fingerprint != before


def test_padding_of_a_model_that_names_none(tmp_path):
    tokenizer = tokenizer_lib.load(saved(tmp_path, converted(True), LLAMA))
    assert tokenizer.pad_id == tokenizer.unk_id == 0 != tokenizer.eos_id
    assert not tokenizer.is_control(tokenizer.unk_id)


@pytest.mark.parametrize(
    "others, wanted",
    [
        (["<|im_start|>", "<|im_end|>", "<|fim_pad|>"], "<|fim_pad|>"),  # Qwen
        (["<|start_header_id|>", "<|reserved_special_token_0|>"], "<|reserved_special_token_0|>"),
        (["<|im_end|>", "<|im_start|>"], "<|im_start|>"),  # a turn may end with the other
        ([], "<|begin|>"),
    ],
)
def test_a_pad_that_is_the_end_of_text_is_not_taken(others, wanted):
    names = ["<|endoftext|>", "<|begin|>", *others, "x"]
    special = hf_special.Special(
        (
            ("bos_token", "<|begin|>"),
            ("eos_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ),
        (),
    )
    vocabulary = {name: id for id, name in enumerate(names)}
    bos, eos, pad = special.ids(vocabulary, set(range(len(names) - 1)), -1, "x.json")
    assert (bos, eos, names[pad]) == (1, 0, wanted)


def test_ids_stay_where_added_tokens_follow_the_vocabulary(tmp_path):
    made = byte_level()
    tokenizer = tokenizer_lib.load(saved(tmp_path, made, CHAT))
    assert tokenizer.id_of("<think>") == made.token_to_id("<think>")
    assert tokenizer.encode("   ") == [made.token_to_id("   ")] == [tokenizer.vocab_size - 1]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"model": {"type": "BPE"}}'])
def test_files_that_are_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(errors.ConfigError, match="tokenizer.json: (not a|a BPE)"):
        tokenizer_lib.load(tmp_path)


def damaged(facts, draw):
    """A copy with one value, anywhere, replaced by another kind of value."""
    facts = json.loads(json.dumps(facts))
    node = facts
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.7:
            node = node[key]
            continue
        node[key] = draw.choice([None, -1, 2**31, "x", [], {}, [[]], 0.5, {"type": "ByteLevel"}])
        return facts


@pytest.mark.parametrize(
    "kind", ["byte-level", "converted with a space first", "converted unigram"]
)
def test_damaged_files_are_refused_in_one_line(kind, tmp_path):
    made, config = KINDS[kind]
    saved(tmp_path, made(), config)
    path = tmp_path / "tokenizer.json"
    whole, draw = json.loads(path.read_text("utf-8")), random.Random(0)
    refused = 0
    for _ in range(150):
        path.write_text(json.dumps(damaged(whole, draw)), "utf-8")
        try:
            tokenizer_lib.load(path).encode("あ x")
        except errors.ConfigError as error:
            refused += 1
            assert str(path) in error.message and "\n" not in error.message
    assert refused > 20


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model":' * 50_000])
def test_deep_files(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(errors.ConfigError, match="not a tokenizer.json"):
        tokenizer_lib.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text, "utf-8")
    with pytest.raises(errors.ConfigError, match="tokenizer_config.json"):
        templates.of_folder(tmp_path)


def test_ids_far_beyond_the_vocabulary_are_refused(tmp_path):
    saved(tmp_path, converted(False), LLAMA)
    path = tmp_path / "tokenizer.json"
    facts = json.loads(path.read_text("utf-8"))
    facts["model"]["vocab"]["far"] = 4_000_000_000
    path.write_text(json.dumps(facts), "utf-8")
    with pytest.raises(errors.ConfigError, match="with ids up to 4,000,000,000"):
        tokenizer_lib.load(path)


def test_kinds_that_are_not_read(tmp_path):
    made = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    with pytest.raises(errors.ConfigError, match="WordPiece model with the decoder WordPiece"):
        tokenizer_lib.load(saved(tmp_path, made, LLAMA))


def test_no_end_of_text_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match="names the end-of-text token"):
        tokenizer_lib.load(saved(tmp_path, byte_level()))
    with pytest.raises(errors.ConfigError, match="calls '<eos>' the eos_token, which it lacks"):
        tokenizer_lib.load(saved(tmp_path, byte_level(), {"eos_token": "<eos>"}))


def test_lone_surrogates_are_refused(each):
    with pytest.raises(errors.DataError, match="lone surrogate at character 1"):
        each.encode("a\ud800b")


def test_conversations(tmp_path):
    tokenizer = tokenizer_lib.load(saved(tmp_path, byte_level(), CHAT))
    template = templates.load("chatml", tokenizer)
    typed = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "答え"}]
    rendered = render.render(typed, template, tokenizer)
    shown = [tokenizer.piece(id) for id in rendered.tokens if tokenizer.is_control(id)]
    assert shown == ["<|im_start|>", "<|im_end|>"] * 2
    assert sum(rendered.loss_mask) == len(tokenizer.encode_continuation("答え")) + 1


def test_a_copy_is_the_same_tokenizer(tmp_path, tokenizer):
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir(), target.mkdir()
    ids = {"eos_token_id": 2, "bos_token_id": 0}
    first = tokenizer_lib.load(saved(source, byte_level(), None, config=ids))
    tokenizer_lib.copy(source, target)
    again = tokenizer_lib.load(target)
    assert (again.bos_id, again.eos_id, again.pad_id) == (0, 2, 3)
    assert again.encode("本文です") == first.encode("本文です")
    assert not (target / "config.json").exists()
    # Where both kinds lie, the .json is taken; an older profile of that name is not one.
    tokenizer_lib.copy(tokenizer.path, target)
    assert tokenizer_lib.find(target).name == "tokenizer.json"
    (target / "tokenizer.json").write_text('{"normalise": {"nfkc": true}}', "utf-8")
    assert tokenizer_lib.load(target).fingerprint == tokenizer.fingerprint
    (target / "tokenizer.normalise.json").unlink()
    assert tokenizer_lib.load(target).profile.nfkc
