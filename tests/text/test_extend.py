"""Vocabulary extension: old ids stay, the base's language is cut as before, Japanese takes fewer tokens."""

import json

import pytest
import sentencepiece

from jinstr import errors
from jinstr.samples import build
from jinstr.text import extend, normalise, publish, train_tokenizer
from jinstr.text import tokenizer as tokenizer_lib

ENGLISH = [
    f"The {adjective} {noun} {verb} near the {place}, and {number} people looked at it."
    for adjective in ("small", "old", "green", "quiet", "very large", "broken")
    for noun in ("house", "river", "engine", "teacher", "computer", "garden")
    for verb in ("stands", "sleeps", "runs", "waits", "returned", "was found")
    for place, number in (("mountain", 3), ("station", 12), ("library", 250), ("sea", 7))
]
CHAT = ("<|im_start|>", "<|im_end|>")


def japanese():
    for row in build.hand_written():
        yield row["text"]
    yield from build.passages()


@pytest.fixture(scope="module", params=["unigram", "bpe", "unigram prefixed", "bpe prefixed"])
def pair(request, tmp_path_factory):
    """(base trained on English, the base extended)."""
    folder = tmp_path_factory.mktemp("extend")
    kind, _, prefix = request.param.partition(" ")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH),
        model_prefix=str(folder / "base"),
        vocab_size=400,
        model_type=kind,
        hard_vocab_limit=False if kind == "unigram" else True,
        byte_fallback=True,
        add_dummy_prefix=bool(prefix),
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n"],
        minloglevel=2,
    )
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=1400, threads=1)
    report = train_tokenizer.train(
        {"ja": japanese(), "en": ENGLISH},
        str(folder / "longer"),
        config,
        normalise.NormaliseConfig(),
        base=str(folder / "base.model"),
    )
    base, longer = (tokenizer_lib.load(folder / f"{n}.model") for n in ("base", "longer"))
    return base, longer, report


def test_old_ids_stay_and_new_pieces_are_japanese(pair):
    base, longer, report = pair
    assert longer.vocab_size == 1400 > base.vocab_size
    every = [longer.piece(id) for id in range(longer.vocab_size)]
    assert every[: base.vocab_size] == [base.piece(id) for id in range(base.vocab_size)]
    assert len(set(every)) == 1400
    new = every[base.vocab_size :]
    assert tuple(new[:2]) == CHAT and all(longer.id_of(name) for name in CHAT)
    assert not any(c.isascii() or c.isspace() or c == "\u2581" for p in new[2:] for c in p)
    assert (longer.bos_id, longer.eos_id, longer.unk_id) == (base.bos_id, base.eos_id, base.unk_id)


def test_the_language_of_the_base_is_cut_as_before(pair):
    base, longer, _ = pair
    texts = [
        *ENGLISH,
        " two  spaces\n\tand tabs",
        "naïve café — “quotes” … 3.14",
        "<s></s>",
        "",
        " ",
    ]
    assert [longer.encode(text) for text in texts] == [base.encode(text) for text in texts]
    # Negative control.
    assert longer.encode("春の山") != base.encode("春の山")


def test_japanese_takes_fewer_tokens_and_comes_back(pair):
    base, longer, report = pair
    after, before = report["tokenizers"].values()
    rate = "characters_per_token"
    assert after["sources"]["ja"][rate] > 3 * before["sources"]["ja"][rate]
    assert after["sources"]["en"][rate] == before["sources"]["en"][rate]
    assert after["round_trip_failures"] == after["round_trip_failures_random_unicode"] == 0
    used = {id for text in japanese() for id in longer.encode(text)}
    new = range(base.vocab_size + 2, longer.vocab_size)
    assert sum(id in used for id in new) > 0.6 * len(new)


def test_old_pieces(pair):
    base, longer, _ = pair
    found = extend.old_pieces(base, longer)
    assert list(found) == list(range(base.vocab_size, longer.vocab_size))
    for id, ids in found.items():
        wanted = longer.piece(id) if longer.is_control(id) else longer.decode_continuation([id])
        assert base.decode_continuation(ids) == wanted and max(ids) < base.vocab_size
    assert extend.old_pieces(base, base) == {}
    with pytest.raises(errors.ConfigError, match="no extension of"):
        extend.old_pieces(longer, base)


def test_the_extension_can_be_published(pair, tmp_path):
    _, longer, _ = pair
    publish.write_tokenizer_files(tmp_path, longer, "chatml")
    again = tokenizer_lib.load(tmp_path)
    for text in [*list(japanese())[::9], *ENGLISH[::40]]:
        assert again.encode(text) == longer.encode(text)


def test_a_base_that_cannot_be_extended(pair, tmp_path):
    base, longer, _ = pair
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=base.vocab_size)
    identity = normalise.NormaliseConfig()

    def run(path, config=config, profile=identity):
        train_tokenizer.train({"a": ["文"]}, str(tmp_path / "x"), config, profile, base=str(path))

    with pytest.raises(errors.ConfigError, match="VOCAB_SIZE=.* has .* pieces already"):
        run(base.path)
    large = train_tokenizer.TokenizerTrainingConfig(vocab_size=5000)
    with pytest.raises(errors.ConfigError, match="keeps its own normalisation"):
        run(base.path, large, normalise.NormaliseConfig(nfkc=True))
    publish.write_tokenizer_files(tmp_path, longer, "")
    with pytest.raises(errors.ConfigError, match="only SentencePiece models.*tokenizer.model"):
        run(tmp_path / "tokenizer.json", large)


def test_real_text(shared_data, tmp_path):
    base = shared_data / "tokenizers" / "code10k_en20k_ja30k.ver2.1.model"
    with (shared_data / "corpus" / "aozora.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(file.readline())["text"] for _ in range(12)]
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=51570, threads=1)
    report = train_tokenizer.train(
        {"aozora": texts}, str(tmp_path / "x"), config, normalise.NormaliseConfig(), base=str(base)
    )
    after, before = report["tokenizers"].values()
    assert after["characters_per_token"] > 1.02 * before["characters_per_token"]
