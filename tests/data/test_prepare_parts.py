"""Parts of a prepared set, merged: the bytes of one process, from any machines, or a refusal that names the parts."""

import dataclasses
import json
import os
import pathlib
import random
import shutil

import pytest

from jinstr import errors
from jinstr.commands import prepare as command
from jinstr.data import (
    beam_runner,
    dataset,
    part_worker,
    prepare,
    prepare_parts,
    prepare_worker,
    readers,
    sources,
)
from jinstr.testing import faults


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Four files with all that parts cannot know of each other: repeated ids, bad rows, texts that are left out."""
    folder = tmp_path_factory.mktemp("texts")

    def row(number, **more):
        text = f"{number}番目の文章です。" + "春の海ひねもすのたりのたりかな。" * (number % 7)
        return {"id": f"t{number}", "text": text, "author": f"a{number % 9}"} | more

    rows = [row(number) for number in range(80)]
    rows[25] = row(3, text="前と違う、もっと長い文章。" * 900, author="a5")  # of several records
    rows[47] = row(3, text="三度目の文章。", author="a1")
    rows[66] = row(12, text="　")  # a repeat that would be left out anyway
    rows[5] |= {"text": "\u3000", "tag": "x"}
    rows[70] |= {"other": 1}
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[30], lines[63] = "{broken", '{"id": "t63", "text": 7}'
    lines[26] = lines[27] = lines[53] = '{"id": "no text"}'
    for number in range(4):
        part = "\n".join(lines[20 * number : 20 * number + 20])
        (folder / f"part{number}.jsonl").write_text(part + "\n", "utf-8")
    (folder / "exclude.txt").write_text("t12\nt44\n", "utf-8")
    return folder


@pytest.fixture
def text_source(texts):
    return sources.SourceConfig(
        path=f"{texts}/*.jsonl", holdout=0.2, group_by="author", exclude=f"{texts}/exclude.txt"
    )


@pytest.fixture
def ensure(tokenizer_path, tmp_path):
    """A function: source and settings of parts → folder of the set, all in one cache."""

    def call(source, workers=1, **parts):
        config = prepare.PrepareConfig(cache_dir=str(tmp_path / "cache"), workers=workers, shards=3)
        (place,) = prepare.ensure_prepared(
            [source],
            tokenizer_path=tokenizer_path,
            template="chatml",
            config=config,
            maker=prepare_parts.maker(prepare_parts.PartsConfig(**parts)),
        )
        return pathlib.Path(place.path)

    return call


def files(folder):
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    quarantine = folder.with_name(f"{folder.name}.quarantine.jsonl")
    return found | ({"quarantine": quarantine.read_bytes()} if quarantine.exists() else {})


def by_one_process(ensure, source):
    """The files that one process makes; the cache is as before."""
    folder = ensure(source)
    whole = files(folder)
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}.quarantine.jsonl").unlink(missing_ok=True)
    return whole


def test_texts_in_parts(ensure, text_source):
    whole = by_one_process(ensure, text_source)
    manifest = json.loads(whole["manifest.json"])
    assert manifest["drops"] == {
        "bad row: missing field": 3,
        "bad row: not JSON": 1,
        "bad row: wrong type": 1,
        "empty": 1,
        "excluded": 2,
        "held out": manifest["drops"]["held out"],
        "same id": 3,
    }
    faults.enable("read_row@15=kill")
    try:
        with pytest.raises(errors.DataError, match="was killed by signal 9"):
            ensure(text_source, part="1/3")
    finally:
        faults.enable("")
    folder = prepare_parts.parts_folder(ensure(text_source, part="2/3"))
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["00001-of-00003"]
    ensure(text_source, part="3/3", workers=2)
    with pytest.raises(errors.ConfigError, match="1 of 3 parts are not in .*: 1/3; .*PART=1/3"):
        ensure(text_source, merge=True)
    ensure(text_source, part="1/3")
    merged = ensure(text_source, merge=True)
    assert files(merged) == whole
    assert sorted(path.suffix for path in merged.parent.iterdir()) == ["", ".json", ".jsonl"]
    # Negative control: of one more row, other bytes.
    rest = dataclasses.replace(text_source, exclude="")
    assert by_one_process(ensure, rest) != whole


def test_repeated_ids_are_what_the_merge_takes_out(ensure, text_source, monkeypatch, texts):
    """Negative control of the test above: without that, other bytes."""
    parts = [ensure(text_source, part=f"{n}/2") for n in (1, 2)]
    places = sorted(prepare_parts.parts_folder(parts[0]).iterdir())
    opened = part_worker._opened(places)
    repeated = [len(part.repeated) for part in opened]
    assert repeated == [0, 2]  # the third stands beside the first, in one part
    counts = opened[1].outcomes()
    assert counts["reader/excluded"] == 1 and counts["read"] + counts["reader/held out"] == 1


def test_conversations_in_parts(ensure, world):
    source = sources.SourceConfig(path=f"{world}/instructions.jsonl", limit=40, answers="rotate")
    whole = by_one_process(ensure, source)
    for part in ("1/2", "2/2"):
        ensure(source, part=part)
    assert files(ensure(source, workers=2, merge=True)) == whole


def test_wrong_parts_are_named(ensure, texts, tmp_path, capfd):
    path = tmp_path / "a.jsonl"
    shutil.copy(texts / "part1.jsonl", path)
    source = sources.SourceConfig(path=str(path), most_bad=0.5)
    folder = prepare_parts.parts_folder(ensure(source, part="1/2"))
    one, two = folder / "00000-of-00002", folder / "00001-of-00002"
    shutil.copytree(one, two)
    with pytest.raises(errors.StorageError, match="00001-of-00002: it is part 1/2; remove"):
        ensure(source, merge=True)
    shutil.rmtree(two)
    ensure(source, part="2/2")
    before = os.stat(two / "part.json").st_mtime_ns
    ensure(source, part="2/2")  # is there: nothing is done
    assert os.stat(two / "part.json").st_mtime_ns == before
    assert "2/2 was there already" in capfd.readouterr().out

    spill = next(path for path in two.glob("spill-*"))
    data = bytearray(spill.read_bytes())
    data[len(data) // 2] ^= 1
    spill.write_bytes(data)
    with pytest.raises(errors.StorageError, match=f"00001-of-00002: the bytes of {spill.name} ch"):
        ensure(source, merge=True)
    shutil.copytree(one, folder / "00000-of-00003")
    with pytest.raises(errors.ConfigError, match="of 2 parts and of 3 parts; .*PARTS=3"):
        ensure(source, merge=True)

    path.write_text(path.read_text("utf-8") + '{"id": "new", "text": "新しい。"}\n', "utf-8")
    with pytest.raises(errors.ConfigError, match="no part of it is in .*files changed since"):
        ensure(source, merge=True)
    assert two.is_dir()  # nothing was removed


def test_too_many_bad_rows_are_seen_when_parts_are_merged(ensure, tmp_path):
    for number in range(3):
        rows = [json.dumps({"id": f"{number}-{n}", "text": "文。"}) for n in range(100)]
        rows[3 : 3 + 4 * number] = ["{broken"] * (4 * number)
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    source = sources.SourceConfig(path=f"{tmp_path}/*.jsonl", name="s")
    with pytest.raises(errors.DataError) as one:
        ensure(source)
    for part in ("1/2", "2/2"):
        ensure(source, part=part)
    with pytest.raises(errors.DataError) as merged:
        ensure(source, merge=True)
    assert str(merged.value) == str(one.value) and one.value.code == "JI-SOURCE-009"


def test_pieces_hold_every_row_once(texts, tmp_path):
    (tmp_path / "0.txt").write_text("一つの文章。" * 400, "utf-8")
    (tmp_path / "2.txt").write_text("", "utf-8")
    (tmp_path / "3.json").write_text(
        '[{"id": "1", "text": "a"},\n{"id": "2", "text": "b"}]', "utf-8"
    )
    paths = [tmp_path / "0.txt", *sorted(texts.glob("*.jsonl")), tmp_path / "2.txt"]
    paths += [tmp_path / "3.json"]
    whole = [(str(where), str(row)) for path in paths for where, row in readers.rows(path)]
    cut = 0
    for parts in (*range(1, 12), 5000):  # of one byte, too
        pieces = [piece for part in range(parts) for piece in readers.pieces(paths, part, parts)]
        cut += sum(piece.start > 0 for piece in pieces)
        rows = [row for n, a, b in pieces for row in readers.rows(paths[n], a, b)]
        assert [(str(where), str(row)) for where, row in rows] == whole
    assert cut > 1000 and len(whole) == 84


def test_settings_that_do_not_go_together():
    for settings, code in (
        ({"part": "0/2"}, 2),
        ({"part": "3/2"}, 2),
        ({"part": "1/2", "merge": True}, 1),
        ({"beam_options": "--x"}, 3),
        ({"parts": 4}, 4),
    ):
        with pytest.raises(errors.ConfigError) as caught:
            prepare_parts.PartsConfig(**settings)
        assert caught.value.code == f"JI-PARTS-00{code}"
    prepare_parts.PartsConfig(part="2/2")


def test_the_command(tokenizer_path, texts, tmp_path, capfd):
    def run(heldout_list="", **parts):
        return command.prepare(
            data=dataset.DataConfig(data=f"{texts}/part0.jsonl", seq_len=64, batch_tokens=128),
            tokenizer=tokenizer_path,
            template="",
            prepare_config=prepare.PrepareConfig(cache_dir=str(tmp_path), workers=1),
            parts=prepare_parts.PartsConfig(**parts),
            heldout_list=heldout_list,
            seed=0,
        )

    assert run(part="1/1") == {}
    assert "part0: part 1/1 made: 19 examples" in capfd.readouterr().out
    assert run(merge=True)["part0"]["counts"]["examples"] == 19
    assert run(part="1/1") == {} and "prepared already" in capfd.readouterr().out
    with pytest.raises(errors.ConfigError, match="JI-PARTS-010"):
        run(heldout_list="x", part="1/1")


def test_without_beam_the_way_out_is_told(ensure, text_source, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(errors.ConfigError, match="JI-BEAM-001.*PART=i/N"):
        ensure(text_source, runner="direct")


@pytest.mark.peers
def test_beam_writes_the_same_bytes(ensure, text_source, texts):
    pytest.importorskip(
        "apache_beam", reason="Apache Beam is not installed (an environment of its own)"
    )
    whole = by_one_process(ensure, text_source)
    assert files(ensure(text_source, runner="direct", workers=2, parts=3)) == whole
    shutil.rmtree(ensure(text_source))
    # By the job service that Flink and Spark have, too.
    options = "--job_endpoint=embed --environment_type=LOOPBACK"
    folder = ensure(text_source, runner="PortableRunner", beam_options=options, parts=2)
    assert files(folder) == whole
    # An error of the data comes through as it is.
    bad = dataclasses.replace(text_source, on_bad="stop")
    with pytest.raises(errors.DataError, match="part1.jsonl:7: no text"):
        ensure(bad, runner="direct", workers=2)
    nowhere = {"place": "/not/there/00000-of-00001"}
    with pytest.raises(errors.MachineError, match="JI-PARTS-005: /not/there is not there on this"):
        beam_runner.each(prepare_parts.attempt, [nowhere], "direct", workers=1)
    with pytest.raises(errors.ConfigError, match="JI-BEAM-003.*knows no --regoin=x"):
        ensure(bad, runner="direct", beam_options="--regoin=x --region=y")


def random_corpus(draw, folder):
    """A few files with repeated ids, bad rows, blank texts, other formats; the settings of a source over them."""
    is_plain = draw.random() < 0.5
    ids, bad_share = draw.randint(5, 400), draw.choice([0, 0.0005, 0.004, 0.03, 0.08])
    columns = draw.choice([1, 3, 70])  # more than a report tells apart
    bad = ("{bro", '{"id": "q"}', "[1]", '{"id": "z", "text": 5}', '{"text": "a\\u0000b"}', "\0")

    def line():
        if draw.random() < bad_share:
            return draw.choice(bad)
        text = (
            "　" if draw.random() < 0.03 else "文章" * draw.randint(1, 40) + str(draw.random())[:5]
        )
        row = {"text": text, "author": f"a{draw.randrange(6)}", f"f{draw.randrange(columns)}": 1}
        row |= {"id": f"t{draw.randrange(ids)}"} if draw.random() < 0.8 else {}
        return json.dumps(row, ensure_ascii=draw.random() < 0.5)

    folder.mkdir()
    for number in range(draw.randint(1, 5)):
        lines = [line() for _ in range(draw.choice([0, 1, 30, 200, 400]))]
        end = draw.choice(["\n", "\n\n", "\r\n"])
        text = end.join(lines) + end * draw.randint(0, 1)
        mark = "\ufeff" * draw.randint(0, 1)
        (folder / f"{number}.jsonl").write_bytes((mark + text).encode())
        if not is_plain and draw.random() < 0.3:
            (folder / f"{number}.txt").write_text("本文です。" * draw.randint(0, 300), "utf-8")
    exclude = folder.with_name("exclude")
    exclude.write_text("".join(f"t{draw.randrange(ids)}\n" for _ in range(5)), "utf-8")
    settings = {"path": str(folder), "most_bad": draw.choice([0.001, 0.02, 0.5, 1.0])}
    if draw.random() < 0.5:
        settings |= {"holdout": draw.choice([0.1, 0.5]), "part": draw.choice(["train", "heldout"])}
        settings["holdout_rule"] = draw.choice(["hash", "hash", "greedy"])
    settings["group_by"] = "author" if is_plain and draw.random() < 0.5 else ""
    settings["exclude"] = str(exclude) if draw.random() < 0.5 else ""
    settings["limit"] = draw.randint(1, 100) if draw.random() < 0.2 else 0
    return sources.SourceConfig(**settings)


def done(what, request, folder):
    """The files that a worker makes, or the code of its error."""
    (folder / "work").mkdir(parents=True)
    try:
        what(request, folder)
    except errors.JinstrError as error:
        return error.code
    quarantine = folder / "work" / "quarantine.jsonl"
    rows = quarantine.read_bytes() if quarantine.exists() else b""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} | {"bad": rows}


@pytest.mark.slow
def test_random_corpora_in_parts(tokenizer_path, tmp_path):
    """The same set, or both refuse."""
    seen = {"set": 0, "error": 0, "repeated": 0}
    for seed in range(60):
        draw, place = random.Random(seed), tmp_path / str(seed)
        place.mkdir()
        source = random_corpus(draw, place / "corpus")
        request = {
            "source": dataclasses.asdict(source),
            "tokenizer_path": tokenizer_path,
            "template": "",
            "shards": draw.randint(1, 3),
            "audit": "stop",
            "workers": 1,
            "made_from": {},
            "faults": "",
            "asked_by": os.getppid(),
            "quarantine": "q",
        }
        whole = done(prepare_worker.whole, request, place / "whole")
        parts = draw.randint(1, 6)
        made = [
            done(
                part_worker.make_part,
                request | {"part": part, "parts": parts, "key": "k"},
                place / f"part{part}",
            )
            for part in range(parts)
        ]
        folders = [place / f"part{part}" for part in range(parts)]
        if any(isinstance(part, str) for part in made):
            assert isinstance(whole, str)
            merged = whole
        else:
            seen["repeated"] += sum(len(p.repeated) for p in part_worker._opened(folders))
            asked = request | {"from": list(map(str, folders))}
            merged = done(part_worker.merge, asked, place / "merged")
        assert merged == whole, seed
        seen["error" if isinstance(whole, str) else "set"] += 1
        shutil.rmtree(place)
    assert seen["set"] > 20 and seen["error"] > 5 and seen["repeated"] > 100
