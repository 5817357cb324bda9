"""Model files of a run directory: either kind of tokenizer, and templates, found again."""

import json

import pytest

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.text import publish, templates
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import model_files


def test_both_kinds_of_tokenizer(tokenizer_path, tmp_path):
    config = config_lib.DecoderConfig()
    own = tokenizer_lib.load(tokenizer_path)
    model_files.write(tmp_path / "a", config, str(tokenizer_path), "chatml")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    expected = {"model.json", "tokenizer.model", "tokenizer.normalise.json", "template.txt"}
    assert names == expected
    again = tokenizer_lib.load(model_files.tokenizer_path(tmp_path / "a"))
    assert again.fingerprint == own.fingerprint

    publish.write_tokenizer_files(tmp_path / "hf", own, "chatml")
    (tmp_path / "hf" / "tokenizer.model").unlink()
    template = templates.of_folder(tmp_path / "hf")
    model_files.write(tmp_path / "b", config, str(tmp_path / "hf"), template)
    names = {path.name for path in (tmp_path / "b").iterdir()}
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert names == {"model.json", "template.jinja"} | tokenizer_files
    path = model_files.tokenizer_path(tmp_path / "b")
    again = tokenizer_lib.load(path)
    assert path.endswith("tokenizer.json") and again.encode("春の山") == own.encode("春の山")
    assert (again.eos_id, again.pad_id) == (own.eos_id, own.pad_id)
    loaded = templates.load(model_files.template_of(tmp_path / "b"), again)
    assert loaded.name == "chatml"
    # Written once more from itself, as a run that goes on does it.
    model_files.write(tmp_path / "b", config, path, model_files.template_of(tmp_path / "b"))
    assert tokenizer_lib.load(path).fingerprint == again.fingerprint


def test_runs_of_older_versions(tokenizer_path, tmp_path):
    model_files.write(tmp_path, config_lib.DecoderConfig(), str(tokenizer_path), "")
    (tmp_path / "tokenizer.normalise.json").rename(tmp_path / "tokenizer.json")
    facts = {"normalise": {"nfkc": True}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(facts), "utf-8")
    found = tokenizer_lib.load(model_files.tokenizer_path(tmp_path))
    assert found.path.endswith("tokenizer.model") and found.profile.nfkc


def test_no_tokenizer(tmp_path):
    with pytest.raises(errors.StorageError, match="no tokenizer.model or tokenizer.json"):
        model_files.tokenizer_path(tmp_path)
