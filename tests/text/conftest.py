"""One small tokenizer with the control tokens of every template, and real lines, shared by the tests of this folder."""

import itertools
import json

import pytest

from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer
from jinstr.text import tokenizer as tokenizer_lib

CONTROLS = (
    *("<|im_start|>", "<|im_end|>", "<NL>", "<start_of_turn>", "<end_of_turn>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
)


def sample_texts():
    for row in build.hand_written():
        answers = row["output"] if isinstance(row["output"], list) else [row["output"]]
        yield from (row["text"], *answers)
    yield from build.passages()


@pytest.fixture(scope="session")
def train(tmp_path_factory):
    """A function that trains a tokenizer on the built-in texts with the given settings and loads it."""

    def make(profile=None, **settings):
        out = str(tmp_path_factory.mktemp("tokenizer") / "small")
        config = train_tokenizer.TokenizerTrainingConfig(
            **{"vocab_size": 2600, "control_tokens": CONTROLS, "threads": 1} | settings
        )
        profile = profile or normalise.NormaliseConfig()
        train_tokenizer.train({"samples": sample_texts()}, out, config, profile)
        return tokenizer_lib.load(out + ".model")

    return make


@pytest.fixture(scope="session")
def tokenizer(train):
    return train()


@pytest.fixture(scope="session")
def prefixed(train):
    """The same with a dummy prefix, as llm-jp and Llama models have it."""
    return train(add_dummy_prefix=True)


REAL = {
    "corpus/aozora.jsonl": 2500,
    "corpus/wiki_ja.jsonl": 2500,
    "corpus/cpprefjp.jsonl": 2500,
    "sft/instruction_ja.jsonl": 2000,
    "eval/jsquad_valid.json": 500,
}


def strings(value):
    """Every line of text in a JSON value."""
    if isinstance(value, str):
        yield from value.split("\n")
    elif isinstance(value, dict | list):
        values = value.values() if isinstance(value, dict) else value
        yield from itertools.chain.from_iterable(map(strings, values))


@pytest.fixture(scope="session")
def real_lines(shared_data):
    """10,000 different lines from five corpora."""
    found = []
    for name, count in REAL.items():
        with (shared_data / name).open(encoding="utf-8") as file:
            lines = (line for row in file for line in strings(json.loads(row)) if len(line) > 3)
            some = list(itertools.islice(dict.fromkeys(lines), count))
        assert len(some) == count
        found += some
    return found
