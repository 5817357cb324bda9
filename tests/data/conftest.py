"""A tokenizer and prepared sets of the built-in data, made once for the tests of this folder."""

import pytest

from jinstr.data import prepare, sources
from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Folder of the built-in data, with 120 kB of prose."""
    return build.write(tmp_path_factory.mktemp("world"), num_bytes=120_000)


@pytest.fixture(scope="session")
def tokenizer_path(world, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("tokenizer") / "small")
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=2400, threads=1)
    names = ("corpus", "instructions")
    texts = {
        name: [
            text
            for example in sources.read(sources.SourceConfig(path=f"{world}/{name}.jsonl"))
            for text in ([example["text"]] if name == "corpus" else example["contents"])
        ]
        for name in names
    }
    train_tokenizer.train(texts, out, config, normalise.NormaliseConfig())
    return out + ".model"


@pytest.fixture(scope="session")
def make(tokenizer_path, tmp_path_factory):
    """A function: sources → prepared sources, in a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")

    def ensure(*configs, template="chatml", **settings):
        config = prepare.PrepareConfig(**{"cache_dir": str(cache), "workers": 1} | settings)
        return prepare.ensure_prepared(
            configs, tokenizer_path=tokenizer_path, template=template, config=config
        )

    return ensure


@pytest.fixture(scope="session")
def sets(make, world):
    """The corpus and the instructions, prepared."""
    return make(
        sources.SourceConfig(path=f"{world}/corpus.jsonl", rate=3.0),
        sources.SourceConfig(path=f"{world}/instructions.jsonl", rate=1.0),
    )
