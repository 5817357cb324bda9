"""What a checkpoint keeps of its data: differences are named, and nothing else is one."""

import dataclasses
import json
import os
import pathlib

import pytest

from jinstr import errors
from jinstr.data import fingerprints, loader, prepared, sources


@pytest.fixture
def identity(make, tmp_path):
    """A function: settings of the loader → the record of two small sources, as read back from a checkpoint."""
    for name in ("a", "b"):
        rows = [{"id": f"{name}{n}", "text": f"{name}の文{n}。"} for n in range(60)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")

    def call(names="ab", rates=(1.0, 1.0), template="chatml", **settings):
        found = make(
            *(sources.SourceConfig(path=f"{tmp_path}/{name}.jsonl") for name in names),
            cache_dir=str(tmp_path / "cache"),
            template=template,
        )
        found = [dataclasses.replace(place, rate=rate) for place, rate in zip(found, rates)]
        config = loader.LoaderConfig(**{"seq_len": 64, "batch_rows": 2} | settings)
        return json.loads(json.dumps(loader.Loader(found, config).identity))

    return call


def test_the_same_data_do_not_differ(identity, tmp_path):
    saved = identity()
    assert fingerprints.difference(saved, identity()) == ""
    fingerprints.check(saved, identity(prefetch=9), "run: step 5")
    os.utime(tmp_path / "a.jsonl", (1, 1))
    assert fingerprints.difference(saved, identity()) == ""


@pytest.mark.parametrize("change", ["append", "reorder"])
def test_a_changed_file_is_named(identity, tmp_path, change):
    saved = identity()
    path = tmp_path / "b.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    changed = [*lines, lines[0].replace("b0", "b99")] if change == "append" else lines[::-1]
    path.write_text("".join(changed), "utf-8")
    with pytest.raises(
        errors.DataError,
        match=r"JI-RESUME-001: run: step 5 was trained on other data: source b: b.jsonl changed \(.* → .*\); going",
    ):
        fingerprints.check(saved, identity(), "run: step 5")
    path.write_text("".join(lines), "utf-8")
    assert fingerprints.difference(saved, identity()) == ""


def test_sources_that_come_and_go_are_named(identity):
    saved = identity()
    found = fingerprints.difference(saved, identity("a"))
    assert found == "source b is no longer there"
    assert fingerprints.difference(identity("a"), saved) == "source b was not there"
    assert "the order of the sources was a, b" in fingerprints.difference(saved, identity("ba"))


def test_settings_of_batches_are_settings(identity):
    saved = identity()
    for settings, text in (
        ({"seq_len": 128}, "seq_len was 64 and is 128"),
        ({"batch_rows": 4}, "batch_rows was 2 and is 4"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"rates": (1.0, 2.0)}, "the rate of b was 1 and is 2"),
    ):
        with pytest.raises(errors.ConfigError, match=f"in other batches: {text};"):
            fingerprints.check(saved, identity(**settings), "run: step 5")


def test_another_prepared_set_is_named(identity):
    """The same file, and other records: a set given as a folder, or other code."""
    saved, now = identity(), identity()
    now["sources"][1] |= {"set": "0" * 16}
    now["sources"][1]["made_from"] |= {"tokenizer": "other"}
    now["fingerprint"] = "0"
    found = fingerprints.difference(saved, now)
    assert found.startswith("source b: its prepared set ") and found.endswith(", tokenizer changed")
    now["sources"][1]["made_from"] = saved["sources"][1]["made_from"] | {"code": "other"}
    assert "the code of jinstr that prepares data changed" in fingerprints.difference(saved, now)
    old = {"fingerprint": "1", "step": 3}
    with pytest.raises(errors.DataError, match="too old to say more"):
        fingerprints.check(old, now, "run")


def test_a_set_keeps_what_it_was_made_from(identity, tmp_path):
    (entry, _) = identity()["sources"]
    manifest = prepared.PreparedSet(entry["path"]).manifest
    path = tmp_path / "a.jsonl"
    digest = prepared.file_digest(pathlib.Path(path))
    assert entry["files"] == {"a.jsonl": [digest, path.stat().st_size]}
    assert {"tokenizer", "template", "code"} <= set(manifest["made_from"])
