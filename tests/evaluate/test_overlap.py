"""Questions of benchmarks in the training data of a run and of the run that it began with."""

import json

import pytest

from jinstr.data import contamination
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.evaluate import overlap
from jinstr.train import lineage

SEEN, UNSEEN = (
    "日本で一番高い山の名前は何といいますか？",
    "世界で一番長い川の名前は何といいますか？",
)


def example(id, question):
    return benchmark_lib.Example(id=id, fields={"question": question}, targets=("答",))


def run_of(folder, init, path):
    folder.mkdir()
    source = {"name": folder.name, "path": path}
    settings = {"init": init, "run_dir": str(folder), "data": {"data": [source]}}
    (folder / "config.json").write_text(json.dumps({"settings": settings}), "utf-8")


@pytest.fixture
def tuned(tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "昔のこと。" + SEEN}) + "\n", "utf-8")
    (tmp_path / "pairs.jsonl").write_text('{"text": "何ですか。"}\n', "utf-8")
    run_of(tmp_path / "base", "", f"{tmp_path}/text.jsonl")
    run_of(tmp_path / "sft", f"{tmp_path}/base", f"{tmp_path}/pairs.jsonl")
    return tmp_path / "sft"


SETS = {"b": [example("1", SEEN), example("2", UNSEEN)]}


def test_what_is_found_is_told_by_source_and_kept(tuned, monkeypatch):
    assert overlap.look(tuned, SETS, None) == {"b": {"sft": 0, "base": 1}}
    kept = lineage.read(tuned / contamination.FILE, {})
    (question,) = kept["benchmarks"]["b"]["questions"]
    assert (question["id"], question["overlap"], question["source"]) == ("1", "whole", "base")
    # Looked for once; again when a file or a benchmark is another.
    with monkeypatch.context() as patch:
        patch.setattr(contamination, "check", lambda *_: pytest.fail("looked for again"))
        assert overlap.look(tuned, SETS, None) == {"b": {"sft": 0, "base": 1}}
    (tuned.parent / "pairs.jsonl").write_text(json.dumps({"text": UNSEEN}) + "\n", "utf-8")
    assert overlap.look(tuned, SETS, None) == {"b": {"sft": 1, "base": 1}}
    other = {"b": [example("1", UNSEEN)]}
    assert overlap.look(tuned, other, None) == {"b": {"sft": 1, "base": 0}}


def test_benchmarks_that_come_later_join_those_that_are_there(tuned):
    other = {"c": [example("9", SEEN)]}
    overlap.look(tuned, SETS, None)
    assert overlap.look(tuned, other, None) == {"c": {"sft": 0, "base": 1}}
    kept = lineage.read(tuned / contamination.FILE, {})["benchmarks"]
    assert list(kept) == ["b", "c"] and kept["b"]["questions"][0]["id"] == "1"
    # Not when the training data has become another: what was found then says nothing of it.
    (tuned.parent / "pairs.jsonl").write_text(json.dumps({"text": UNSEEN}) + "\n", "utf-8")
    overlap.look(tuned, other, None)
    assert list(lineage.read(tuned / contamination.FILE, {})["benchmarks"]) == ["c"]


def test_what_cannot_be_read_is_told(tuned):
    (tuned.parent / "text.jsonl").unlink()
    assert overlap.look(tuned, SETS, None) == {"b": {"sft": 0, "base": None}}
    (tuned.parent / "base" / "config.json").unlink()
    assert overlap.look(tuned, SETS, None) == {"b": {"sft": 0, str(tuned.parent / "base"): None}}


def test_a_run_without_readable_data_is_left_alone(tuned):
    (tuned.parent / "text.jsonl").unlink()
    (tuned.parent / "pairs.jsonl").unlink()
    assert overlap.look(tuned, SETS, None) == {"b": {"sft": None, "base": None}}
    assert not (tuned / contamination.FILE).exists()
