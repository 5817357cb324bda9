"""Training a tokenizer: nothing dropped uncounted, the sample independent of order, clear refusals."""

import collections
import json
import random

import pytest

from jinstr import errors
from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer

LONG = "吾が庭の梅の木に、春を告げる鳥が来て鳴いた。" * 500


def test_cut_pieces_are_the_document_again():
    counts = collections.Counter()
    document = f"短い行\n\n{LONG}\n{'あ' * 3000}終わり"
    pieces = list(train_tokenizer.cut(document, counts))
    assert "".join(pieces) == document and counts["lines cut"] == 2
    assert max(len(piece.encode()) for piece in pieces) <= train_tokenizer.PIECE_BYTES
    assert sum(piece.endswith("。") for piece in pieces) >= 5
    # Negative control: the line itself is what SentencePiece would drop in silence.
    assert len(LONG.encode()) > 4192


def test_every_byte_is_accounted_for():
    documents = [LONG, "行一\n行二\n\n", "▅しるし▅のある行", "終わり"] * 20
    config = train_tokenizer.TokenizerTrainingConfig(source_bytes=50_000)
    pieces, _, facts = train_tokenizer.sample_sources({"a": documents}, config)
    facts = facts["a"]
    total = sum(len(document.encode()) for document in documents)
    assert facts["characters U+2585 left out"] == 40
    assert facts["bytes read"] + 3 * 40 == total
    assert facts["bytes sampled"] == sum(len(piece.encode()) for piece in pieces)
    parts = ("bytes sampled", "bytes beyond the budget", "bytes of empty lines")
    assert sum(facts[part] for part in parts) == facts["bytes read"]
    assert 50_000 <= facts["bytes sampled"] < 50_000 + train_tokenizer.PIECE_BYTES


def test_the_sample_does_not_depend_on_the_order():
    documents = [f"文書{number}の本文です。" for number in range(500)]
    config = train_tokenizer.TokenizerTrainingConfig(source_bytes=5000)
    sample = train_tokenizer.sample_sources({"a": documents}, config)[0]
    random.Random(0).shuffle(documents)
    assert train_tokenizer.sample_sources({"a": documents}, config)[0] == sample
    other = train_tokenizer.TokenizerTrainingConfig(source_bytes=5000, seed=1)
    assert train_tokenizer.sample_sources({"a": documents}, other)[0] != sample


def test_report(tmp_path, tokenizer):
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=1700, threads=1)
    texts = {"a": build.passages(), "b": [row["text"] for row in build.hand_written()]}
    train_tokenizer.train(
        texts, str(tmp_path / "t"), config, normalise.NormaliseConfig(), [tokenizer.path]
    )
    report = json.loads((tmp_path / "t.report.json").read_text("utf-8"))
    own, other = report["tokenizers"].values()
    assert own["vocab_size"] == 1700 and other["vocab_size"] == tokenizer.vocab_size
    assert own["round_trip_failures"] == own["round_trip_failures_random_unicode"] == 0
    assert own["characters_per_token"] > 1 > own["byte_share"]


def test_digits_newlines_and_special_ids(tokenizer):
    ids = tokenizer.encode("2024年\n")
    assert [tokenizer.piece(id) for id in ids] == ["2", "0", "2", "4", "年", "\n"]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)


def test_a_vocabulary_too_large_is_refused(tmp_path):
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=30000, threads=1)
    with pytest.raises(errors.ConfigError, match="VOCAB_SIZE=30000.*smaller vocabulary"):
        train_tokenizer.train(
            {"a": ["短い文章。"] * 10}, str(tmp_path / "t"), config, normalise.NormaliseConfig()
        )


def test_no_text_is_refused(tmp_path):
    config = train_tokenizer.TokenizerTrainingConfig()
    with pytest.raises(errors.DataError, match="no text"):
        train_tokenizer.train({"a": []}, str(tmp_path / "t"), config, normalise.NormaliseConfig())
