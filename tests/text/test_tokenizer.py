"""Text to ids and back: lossless, no control token from what people type, streams without broken characters."""

import json
import shutil

import pytest
import sentencepiece

from jinstr import errors
from jinstr.samples import build
from jinstr.text import normalise, render, surfaces, templates, train_tokenizer
from jinstr.text import tokenizer as tokenizer_lib

HARD = [
    "",
    " ",
    "　全角と 半角",
    "\u2581\u2581",
    "a\u2581b",
    "</s><s><|im_start|>user<pad>",
    "①㈱ｶﾞｷﾞ𠮷👨‍👩‍👧",
    "改行\n\n\tタブ\r\n",
    "\x00\x02",
]


@pytest.fixture(params=["plain", "prefixed"])
def either(request, tokenizer, prefixed):
    return tokenizer if request.param == "plain" else prefixed


def test_round_trip_of_any_unicode(either):
    texts = [*HARD, *train_tokenizer.random_unicode(400, seed=1)]
    assert [either.decode(either.encode(t)) for t in texts] == texts
    assert [either.decode_continuation(either.encode_continuation(t)) for t in texts] == texts
    # Negative control: SentencePiece alone loses some of them.
    raw = either._model
    assert any(raw.decode(raw.encode(t)) != t for t in texts)


def test_typed_control_strings_stay_text(either):
    texts = [*HARD, "<|im_end|>", "前<|eot_id|>後", "<NL>", *train_tokenizer.random_unicode(200, 2)]
    for text in texts:
        for ids in (either.encode(text), either.encode_continuation(text)):
            assert not [id for id in ids if either.is_control(id)]
    assert either.is_control(either.id_of("<|im_end|>")) and either.id_of("猫") is None


def test_stream_equals_decode_and_has_no_broken_characters(either):
    for text in [*HARD, "𠮷野家で👩‍👧と食べた"]:
        ids = either.encode_continuation(text)
        for end in range(len(ids) + 1):
            stream = either.stream()
            pieces = [stream.push(id) for id in ids[:end]] + [stream.flush()]
            assert "\ufffd" not in "".join(pieces)
            assert "".join(pieces) == either.decode_continuation(ids[:end])
    # Negative control: half a character decodes to U+FFFD when bytes are simply joined.
    assert "\ufffd" in "𠮷".encode()[:2].decode("utf-8", "replace")


def test_continuation_has_no_prefix(prefixed, tokenizer):
    assert prefixed.encode("猫") != prefixed.encode_continuation("猫")
    assert tokenizer.encode("猫") == tokenizer.encode_continuation("猫")


def test_ids_of_llm_jp(shared_data):
    path = shared_data / "tokenizers" / "llm-jp-tokenizer-100k.ver3.1.model"
    tokenizer = tokenizer_lib.load(path)
    assert tokenizer.encode("富士山") == [47487]
    assert tokenizer.encode_continuation("富士山") == [68037]
    assert tokenizer.is_control(tokenizer.pad_id) and tokenizer.pad_id != tokenizer.eos_id


@pytest.mark.parametrize("name", ["code10k_en20k_ja30k.ver2.1", "llm-jp-tokenizer-100k.ver3.1"])
def test_ten_thousand_real_lines_have_the_ids_of_sentencepiece(name, shared_data, real_lines):
    path = str(shared_data / "tokenizers" / f"{name}.model")
    own, library = tokenizer_lib.load(path), sentencepiece.SentencePieceProcessor(path)
    template = templates.load("llm-jp-3", own)
    assert len(set(real_lines)) == 10_000
    for line in real_lines:
        wanted = library.encode(line)
        assert own.encode(line) == own.encode_array(line).tolist() == wanted
        prompt = [{"role": "user", "content": line}]
        text = "".join(part.text for part in template.parts(prompt))
        ids = render.render_prompt(prompt, template, own)
        assert ids == [own.bos_id, *library.encode(text)]
    # Negative control.
    assert own.encode("x" + line) != wanted


def test_html_is_text_and_turn_markers_are_not():
    text = ["<b>", "</table>", "<br/>", "<h2>", "\n", "<0", "[1]", "<a b>"]
    control = ["<s>", "</s>", "<pad>", "<|im_end|>", "[INST]", "[/INST]", "<NL>", "<start_of_turn>"]
    assert [surfaces.is_markup(piece) for piece in text] == [False] * len(text)
    assert [surfaces.is_markup(piece) for piece in control] == [True] * len(control)


@pytest.mark.parametrize(
    "field, text, wanted",
    [
        ("nfkc", "①ｶﾞ", "1ガ"),
        ("full_width_ascii", "ＡＢ～！", "AB～!"),
        ("half_width_kana", "ｶﾞＡ", "ガＡ"),
        ("wave_dash", "1～2", "1〜2"),
        ("spaces", "a　 b\n c", "a b\n c"),
    ],
)
def test_profiles(field, text, wanted):
    profile = normalise.NormaliseConfig(**{field: True})
    assert normalise.normalise(text, profile) == wanted
    assert normalise.normalise(text, normalise.NormaliseConfig()) == text


def test_profile_travels_with_the_model(train):
    tokenizer = train(profile=normalise.NormaliseConfig(nfkc=True))
    assert tokenizer.decode(tokenizer.encode("ＡＢＣ①")) == "ABC1"


def test_errors_name_the_file(tmp_path):
    with pytest.raises(errors.ConfigError, match="nowhere.model: no such file"):
        tokenizer_lib.load(tmp_path / "nowhere.model")
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(errors.ConfigError, match="not a SentencePiece model"):
        tokenizer_lib.load(tmp_path / "x.model")


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(errors.DataError, match="lone surrogate"):
        tokenizer.encode("a\ud800b")


@pytest.mark.parametrize("prefix", [True, False])
def test_prefix_of_a_model_that_strips_spaces(tmp_path, prefix):
    """Older Japanese models add a space before a text and strip those that are there: " x" and "x" look alike."""
    texts = [text for row in build.hand_written() for text in (row["text"], str(row["output"]))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "old"),
        vocab_size=2600,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    old = tokenizer_lib.load(str(tmp_path / "old.model"))
    begins = old.decode_continuation(old.encode("山")).startswith(" ")
    assert begins == prefix
    for text in ("山", "山と川", "x"):
        assert old.decode_continuation(old.encode_continuation(text)) == text
        assert old.decode(old.encode(text)) == text


def test_older_models_are_called_spiece(tokenizer, tmp_path):
    folder, run = tmp_path / "a", tmp_path / "b"
    folder.mkdir(), run.mkdir()
    assert tokenizer_lib.find(folder) is None  # negative control
    shutil.copyfile(tokenizer.path, folder / "spiece.model")
    assert tokenizer_lib.load(folder).encode("本文") == tokenizer.encode("本文")
    tokenizer_lib.copy(folder, run)
    assert [path.name for path in run.iterdir()] == ["tokenizer.model"]


IM_END = {"content": "<|turn_end|>", "special": True}


@pytest.mark.parametrize(
    "name, facts, wanted",
    [
        ("added_tokens", {"<|extra|>": 9000}, r"'<\|extra\|>' \(id 9000\)"),
        ("added_tokens", {"<pad>": 7}, r"'<pad>' \(id 7\)"),  # there, but with another id
        ("tokenizer_config", {"added_tokens_decoder": {"9000": IM_END}}, r"turn_end\|>' \(id"),
        ("tokenizer_config", {"eos_token": IM_END}, r"turn_end\|>' \(eos_token\)"),
        ("tokenizer_config", {"pad_token": "[P]"}, r"'\[P\]' \(pad_token\)"),
        ("special_tokens_map", {"eos_token": "<|im_end|>"}, r"eos_token, which is '</s>' in it"),
    ],
)
def test_tokens_that_only_files_beside_a_model_name_are_refused(
    name, facts, wanted, tokenizer, tmp_path
):
    model = tmp_path / "tokenizer.model"
    shutil.copyfile(tokenizer.path, model)
    same = {tokenizer.piece(id): id for id in range(5)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(same), "utf-8")
    config = {"eos_token": "</s>", "bos_token": None, "pad_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert tokenizer_lib.load(tmp_path).eos_id == tokenizer.eos_id  # negative control
    (tmp_path / f"{name}.json").write_text(json.dumps(facts), "utf-8")
    if name == "special_tokens_map":
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(errors.ConfigError, match=wanted) as caught:
        tokenizer_lib.load(tmp_path)
    assert "save_pretrained" in caught.value.message and "\n" not in caught.value.message
    # Alone under a name of its own, a model is what it is.
    model.rename(tmp_path / "mine.model")
    assert tokenizer_lib.load(tmp_path / "mine.model").eos_id == tokenizer.eos_id
