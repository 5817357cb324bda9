"""One small tokenizer with the control tokens of every template, shared by the tests of this folder."""

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
