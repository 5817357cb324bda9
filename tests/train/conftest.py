"""A small loader and model that the tests of this folder share."""

import pytest

from jinstr.data import loader, prepare, sources
from jinstr.models import config as config_lib
from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return build.write(tmp_path_factory.mktemp("world"), num_bytes=60_000)


@pytest.fixture(scope="session")
def tokenizer_path(world, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("tokenizer") / "small")
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=2200, threads=1)
    texts = [e["text"] for e in sources.read(sources.SourceConfig(path=f"{world}/corpus.jsonl"))]
    texts += [row["text"] for row in build.hand_written()]
    train_tokenizer.train({"a": texts}, out, config, normalise.NormaliseConfig())
    return out + ".model"


@pytest.fixture(scope="session")
def open_loader(world, tokenizer_path, tmp_path_factory):
    """A function: settings of the loader → loader over the instructions and the corpus."""
    config = prepare.PrepareConfig(cache_dir=str(tmp_path_factory.mktemp("cache")), workers=1)
    sets = prepare.ensure_prepared(
        sources.parse(f"{world}/instructions.jsonl,{world}/corpus.jsonl*0.5"),
        tokenizer_path=tokenizer_path,
        template="chatml",
        config=config,
    )

    def make(**settings):
        return loader.Loader(
            sets, loader.LoaderConfig(**{"seq_len": 128, "batch_rows": 8} | settings)
        )

    return make


@pytest.fixture(scope="session")
def model():
    return config_lib.DecoderConfig(
        vocab_size=2240,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        mlp_size=64,
    )
