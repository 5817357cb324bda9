"""Where INIT=hf:… looks: folders, the hub's cache and what is whole in it, tokenizers with more pieces than rows."""

import shutil

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.models import decoder
from jinstr.text import publish
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import base as base_lib
from jinstr.train import hub
from tests.models import hf_cases


@pytest.fixture
def snapshot(tmp_path, monkeypatch, tokenizer_path):
    """A whole model of the hub's cache, org/name at main."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub/models--org--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("a" * 40)
    folder = place / "snapshots" / ("a" * 40)
    hf_cases.write(folder, "llama", vocab_size=2240)
    publish.write_tokenizer_files(folder, tokenizer_lib.load(tokenizer_path), "chatml")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """What would have been downloaded."""
    names = []

    def fetch(name, revision):
        names.append((name, revision))
        raise errors.StorageError("JI-INIT-004", "no network in tests")

    monkeypatch.setattr(hub, "_downloaded", fetch)
    return names


def test_a_model_of_the_cache_is_found(snapshot, asked):
    assert hub.is_here("hf:org/name") and hub.folder_of("hf:org/name").samefile(snapshot)
    assert base_lib.open_base("hf:org/name").config.vocab_size == 2240
    assert not asked


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer"])
def test_half_a_model_is_fetched(missing, snapshot, asked):
    for path in snapshot.glob(f"{missing}*"):
        path.unlink()
    assert not hub.is_here("hf:org/name")
    with pytest.raises(errors.StorageError):
        hub.folder_of("hf:org/name")
    assert asked == [("org/name", None)]


def test_what_is_not_there_is_fetched_at_its_revision(snapshot, asked):
    with pytest.raises(errors.StorageError):
        hub.folder_of("hf:org/name@v2")
    assert asked == [("org/name", "v2")]
    with pytest.raises(errors.ConfigError, match="neither a folder nor a name"):
        hub.folder_of("hf:no name")


def test_a_tokenizer_with_more_pieces_gets_rows(tmp_path, tokenizer_path, capsys):
    """As where a padding token was added to a tokenizer alone: its id would be read beyond the table."""
    pieces = tokenizer_lib.load(tokenizer_path).vocab_size
    hf_cases.write(tmp_path, "llama", vocab_size=pieces - 3)
    shutil.copyfile(tokenizer_path, tmp_path / "tokenizer.model")
    base = base_lib.open_base(f"hf:{tmp_path}")
    assert base.config.vocab_size % 64 == 0 and base.config.vocab_size >= pieces
    assert f"{pieces:,} pieces, but {pieces - 3:,} rows" in capsys.readouterr().out
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        decoder.abstract_params(base.config),
    )
    params = base.load(abstract)
    table, head = params["embed"]["embedding"], params["head"]["kernel"].T
    for rows in (table, head):
        np.testing.assert_allclose(rows[-1], rows[: pieces - 3].mean(0), atol=1e-6)
    stored = hf_cases.tensors(hf_cases.config_json("llama") | {"vocab_size": pieces - 3})
    np.testing.assert_array_equal(table[: pieces - 3], stored["model.embed_tokens.weight"])
