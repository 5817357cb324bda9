"""Prepared sets: found again, the same bytes from any number of workers, damage seen, TensorFlow not needed."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jinstr import errors
from jinstr.data import dataset, encoding, prepare, prepared, records, sources
from jinstr.text import templates
from jinstr.text import tokenizer as tokenizer_lib


def test_a_set_holds_what_its_source_says(sets, world, tokenizer_path):
    """Every record against an encoding of our own, found by its id."""
    tokenizer = tokenizer_lib.load(tokenizer_path)
    template = templates.load("chatml", tokenizer)
    for place, name, template_ in zip(sets, ("corpus", "instructions"), (None, template)):
        opened = prepared.PreparedSet(place.path, verify=True)
        examples = list(sources.read(sources.SourceConfig(path=f"{world}/{name}.jsonl")))
        wanted = {}
        for example in examples:
            found = encoding.encode(opened.kind, name, example, tokenizer, template_)
            wanted |= {(r.id, r.part): r for r in found.records}
        assert len(opened) == len(wanted) and opened.manifest["counts"]["examples"] == len(examples)
        for record in opened.read(range(len(opened))):
            own = wanted[record.id, record.part]
            assert np.array_equal(record.tokens, own.tokens)
            if opened.kind == "chat":
                assert np.array_equal(record.mask, own.mask) and record.weight == own.weight
        total = sum(sources.size(example) for example in examples)
        assert opened.manifest["counts"]["utf8_bytes"] == total


def test_the_bytes_do_not_depend_on_the_workers(make, world, tmp_path):
    source = sources.SourceConfig(path=f"{world}/instructions.jsonl")
    folders = []
    for workers in (1, 2):
        (place,) = make(source, workers=workers, shards=3, cache_dir=str(tmp_path / str(workers)))
        folders.append(pathlib.Path(place.path))
    one, two = ({p.name: p.read_bytes() for p in f.iterdir() if p.is_file()} for f in folders)
    assert one == two and sum(name.startswith("shard") for name in one) == 3
    # Negative control: another template gives other bytes.
    (place,) = make(source, shards=3, cache_dir=str(tmp_path / "1"), template="llm-jp-3")
    assert {
        p.name: p.read_bytes() for p in pathlib.Path(place.path).iterdir() if p.is_file()
    } != one


def test_sets_are_found_again_until_something_changes(make, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"ID": "1", "text": "問い", "output": "答え"}\n', "utf-8")
    cache = str(tmp_path / "cache")
    source = sources.SourceConfig(path=str(path))
    first = make(source, cache_dir=cache)
    assert make(source, cache_dir=cache, workers=2) == first
    moved = tmp_path / "b"
    moved.mkdir()
    assert make(source, cache_dir=cache, template="alpaca-ja") != first
    path.write_text('{"ID": "1", "text": "問い", "output": "答"}\n', "utf-8")
    assert make(source, cache_dir=cache) != first


def test_errors_of_the_child_process_come_through(make, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"ID": "1", "text": "問い", "output": 3}\n', "utf-8")
    with pytest.raises(errors.DataError, match="a.jsonl:1: output is int"):
        make(sources.SourceConfig(path=str(path)))
    path.write_text('{"ID": "1", "text": "問い", "output": "答え"}\n', "utf-8")
    with pytest.raises(errors.ConfigError, match="TEMPLATE=chatml"):
        make(sources.SourceConfig(path=str(path)), template="")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_several_processes_must_prepare_first(tokenizer_path, world, tmp_path):
    source = sources.SourceConfig(path=f"{world}/corpus.jsonl")
    with pytest.raises(errors.ConfigError, match="jinstr prepare DATA=.*corpus.jsonl"):
        prepare.ensure_prepared(
            [source],
            tokenizer_path=tokenizer_path,
            template="",
            config=prepare.PrepareConfig(cache_dir=str(tmp_path)),
            may_prepare=False,
        )


def test_damage_is_seen(sets, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(sets[0].path, folder)
    shard = next(folder.glob("shard*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    prepared.PreparedSet(folder)  # sizes agree
    with pytest.raises(errors.StorageError, match="its bytes changed"):
        prepared.PreparedSet(folder, verify=True)
    shard.write_bytes(data[:-1])
    with pytest.raises(errors.StorageError, match="the manifest says"):
        prepared.PreparedSet(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(errors.StorageError, match="not a prepared set"):
        prepared.PreparedSet(folder)


def test_drops_and_findings_stand_in_the_manifest(make, tmp_path):
    rows = [
        {"ID": "1", "text": "問い", "output": "答え"},
        {"ID": "2", "text": "問い2", "output": "  "},
        {"ID": "3", "text": "問い3", "output": "長い" * 40_000},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (place,) = make(sources.SourceConfig(path=str(path)))
    manifest = prepared.PreparedSet(place.path).manifest
    assert manifest["drops"] == {"empty answer": 1, "longer than a record": 1}
    assert manifest["counts"] | {"targets": 0, "utf8_bytes": 0} == {
        "read": 3,
        "examples": 1,
        "records": 1,
        "straddles": 0,
        "targets": 0,
        "utf8_bytes": 0,
    }


def test_long_documents_become_chunks_that_predict_every_token_once(tokenizer_path):
    tokenizer = tokenizer_lib.load(tokenizer_path)
    example = {"id": "x", "text": "長い文章です。" * 9000}
    parts = encoding.encode_lm("s", example, tokenizer).records
    assert len(parts) > 2 and max(map(records.length, parts)) == records.MAX_TARGETS
    whole = [tokenizer.bos_id, *tokenizer.encode(example["text"]), tokenizer.eos_id]
    assert [int(id) for part in parts for id in part.tokens[1:]] == whole[1:]
    assert all(a.tokens[-1] == b.tokens[0] for a, b in zip(parts, parts[1:]))


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "seqio", "tensorflow_datasets"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


def test_loading_needs_no_tensorflow(sets):
    code = BLOCK + (
        "from jinstr.data import loader, prepared\n"
        "from jinstr.commands import pretrain, sft\n"
        f"place = prepared.PreparedSource(path={sets[0].path!r}, name='a')\n"
        "config = loader.LoaderConfig(seq_len=64, batch_rows=2)\n"
        "print(loader.Loader([place], config).read(3)['tokens'].shape)\n"
        "try:\n    import tensorflow\nexcept ImportError as error:\n    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split("\n")[:2] == ["(2, 64)", "tensorflow is blocked"]


def test_a_prepared_set_given_as_data_keeps_its_licence(make, world, tokenizer_path, tmp_path):
    source = sources.SourceConfig(path=f"{world}/corpus.jsonl", licence="CC0-1.0", limit=40)
    (place,) = make(source)

    def row(source):
        config = dataset.DataConfig(data=(source,), seq_len=128, batch_tokens=256)
        settings = prepare.PrepareConfig(cache_dir=str(tmp_path), workers=1)
        loaded = dataset.load(
            config, tokenizer_path=tokenizer_path, template="", prepare_config=settings, seed=0
        )
        return dataset.table(loaded)[0]

    given = row(sources.SourceConfig(path=place.path))
    assert (given["licence"], given["commercial"]) == ("CC0-1.0", None)
    # What the run says comes first.
    assert row(sources.SourceConfig(path=place.path, licence="MIT"))["licence"] == "MIT"
    # Negative control: the file itself says nothing.
    assert row(sources.SourceConfig(path=f"{world}/corpus.jsonl", limit=40))["licence"] == ""
