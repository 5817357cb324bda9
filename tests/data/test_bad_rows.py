"""Bad rows: told by rule with their place, kept in a quarantine file, capped; what is odd is told before training."""

import json
import pathlib

import pytest

from jinstr import errors
from jinstr.commands import prepare as prepare_command
from jinstr.data import bad_rows, dataset, prepare, prepare_parts, prepared, readers, sources

CLEAN = [json.dumps({"id": f"d{n}", "text": f"文{n}です。"}, ensure_ascii=False) for n in range(40)]
BROKEN = {
    "not JSON": '{"id": "x", "text": "閉じない}'.encode(),
    "not UTF-8": b'{"id": "x", "text": "\xff\xfe"}',
    "NUL character": b'{"id": "x", "text": "a\x00b"}',
    "half of a surrogate pair": rb'{"id": "x", "text": "\ud800"}',
    "not an object with fields": b'["x"]',
    "missing field": b'{"id": "x", "txt": "a"}',
    "wrong type": b'{"id": "x", "text": 7}',
}


def write(path, lines, broken=None, at=9, end=b"\n"):
    found = [line.encode() if isinstance(line, str) else line for line in lines]
    if broken is not None:
        found[at] = broken
    path.write_bytes(b"\n".join(found) + end)
    return str(path)


def read(path, **settings):
    report = bad_rows.Report(quarantine=pathlib.Path(path).with_suffix(".quarantine"))
    found = sources.read(sources.SourceConfig(path=str(path), **settings), report)
    return [example["id"] for example in found], report


@pytest.mark.parametrize("rule", BROKEN)
def test_each_kind_of_damage_has_its_rule(rule, tmp_path):
    path = write(tmp_path / "a.jsonl", CLEAN, BROKEN[rule])
    with pytest.raises(errors.DataError, match="JI-SOURCE-008: .*a.jsonl:10: .*ON_BAD=skip"):
        read(path, on_bad="stop")
    ids, report = read(path)  # text: skip
    assert ids == [f"d{n}" for n in range(40) if n != 9]
    assert report.dropped == {f"bad row: {rule}": 1} and report.rows == 40
    (line,) = report.quarantine.read_text("utf-8").splitlines()
    kept = json.loads(line)
    assert (kept["file"], kept["line"], kept["rule"]) == (path, 10, rule) and kept["reason"]
    if rule != "not UTF-8":
        raw = BROKEN[rule].decode()
        assert kept["raw"] == raw or json.loads(kept["raw"]) == json.loads(raw)
    # Negative control: the sound file has no bad row.
    ids, report = read(write(tmp_path / "a.jsonl", CLEAN))
    assert len(ids) == 40 and not report.dropped


def test_a_first_or_last_line_may_be_the_broken_one(tmp_path):
    path = write(tmp_path / "a.jsonl", CLEAN, b'{"id": "x", "text"', at=0)
    assert readers.kind_of(pathlib.Path(path)) == "jsonl"
    assert read(path)[1].dropped == {"bad row: not JSON": 1}
    path = write(tmp_path / "a.jsonl", [*CLEAN, CLEAN[0][:20]], end=b"")
    assert read(path)[1].dropped == {"bad row: truncated last line": 1}
    value = json.dumps({"data": [json.loads(line) for line in CLEAN]}, indent=0)
    (tmp_path / "b.json").write_text(value, "utf-8")
    assert readers.kind_of(tmp_path / "b.json") == "json"


def test_marks_of_byte_order_and_line_ends_change_nothing(tmp_path):
    clean = read(write(tmp_path / "a.jsonl", CLEAN))[0]
    mark = b"\xef\xbb\xbf"
    lines = [line.encode() for line in CLEAN]
    for changed in (
        [mark + lines[0], *lines[1:]],
        [*lines[:20], mark + lines[20], *lines[21:]],  # files that were joined
        [line + b"\r" for line in lines],
    ):
        ids, report = read(write(tmp_path / "a.jsonl", changed))
        assert ids == clean and not report.dropped


def test_more_bad_rows_than_allowed_stop(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"文{n}"}) for n in range(4000)]
    for count in (bad_rows.FLOOR, bad_rows.FLOOR + 1):
        found = ["{" if n % 600 == 1 and n // 600 < count else line for n, line in enumerate(lines)]
        write(path, found)
        if count == bad_rows.FLOOR:
            assert len(read(path)[0]) == 4000 - count
            continue
        with pytest.raises(errors.DataError, match="6 of 4,000 rows are bad, more than MOST_BAD"):
            read(path)
        assert len(read(path, most_bad=0.0015)[0]) == 4000 - count
    # Early: a file of which a tenth is bad is not read to its end.
    write(path, ["{" if n % 10 == 1 else line for n, line in enumerate(lines)])
    with pytest.raises(errors.DataError, match="20 of 200 rows|of 2.. rows are bad"):
        read(path)
    with pytest.raises(errors.ConfigError, match="JI-SOURCE-014"):
        sources.SourceConfig(path=str(path), most_bad=2)


def test_other_fields_and_shared_ids_are_noted(tmp_path):
    rows = [{"id": n, "instruction": f"問{n}", "input": "", "output": "答"} for n in range(9)]
    rows[4] = {"id": 3, "instruction": "問4", "inptu": "", "output": "答"}
    _, report = read(write(tmp_path / "a.jsonl", map(json.dumps, rows)))
    assert report.notes == {"same id as an earlier row": 1}
    assert report.drift() == {"fields +inptu -input": 1}


def test_damaged_trees_are_bad_rows(tmp_path):
    message = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "問"}
    rows = [message, {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "答"}]
    rows += [{"message_id": ["c"], "parent_id": "a", "role": "assistant", "text": "答"}]
    rows += [{"message_id": "d", "parent_id": "a", "role": "assistant", "text": None}]
    path = write(tmp_path / "a.jsonl", map(json.dumps, rows))
    with pytest.raises(errors.DataError, match="a.jsonl:3: message_id is list"):
        read(path)
    ids, report = read(path, on_bad="skip")
    assert ids == ["b"]
    assert report.dropped == {"bad row: wrong type": 1, "bad row: missing field": 1}


@pytest.fixture
def load(tokenizer_path, tmp_path):
    def call(**settings):
        data = dataset.DataConfig(**{"seq_len": 128, "batch_tokens": 256} | settings)
        config = prepare.PrepareConfig(cache_dir=str(tmp_path / "cache"), workers=1)
        settings = dict(tokenizer_path=tokenizer_path, template="chatml", prepare_config=config)
        return dataset.load(data, seed=0, **settings)

    return call


def test_what_is_left_out_is_told_before_training(load, tmp_path, capfd):
    rows = [{"ID": f"{n}", "text": f"問い{n}", "output": f"答え{n}"} for n in range(30)]
    for n, output in enumerate(("", "　\n", "\u200b", 7, "長い答え。" * 100)):
        rows[n + 3]["output"] = output
    rows[20]["text"] = "　"
    path = write(tmp_path / "a.jsonl", map(json.dumps, rows))
    found = load(data=path, on_bad="skip")
    out = capfd.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("a: "))
    assert line.startswith(
        "a: 24 examples of 29 read; left out: empty answer 3, empty question 1, "
        "bad row: wrong type 1, longer than a row 1; bad rows: "
    )
    (kept,) = map(json.loads, pathlib.Path(line.rpartition(": ")[2]).read_text().splitlines())
    assert kept["line"] == 7 and json.loads(kept["raw"])["output"] == 7
    manifest = prepared.PreparedSet(found.sets[0].path).manifest
    assert manifest["rows"] == 30 and manifest["quarantine"] in line
    # Negative control: a source that is used as a whole has no line.
    load(data=write(tmp_path / "b.jsonl", CLEAN))
    assert capfd.readouterr().out == ""


def test_too_many_bad_rows_leave_their_quarantine(load, tmp_path):
    path = write(tmp_path / "a.jsonl", [*CLEAN, *["{"] * 9])
    with pytest.raises(errors.DataError, match="9 of 49 rows are bad.*those found: ") as caught:
        load(data=path)
    kept = caught.value.message.partition("those found: ")[2].partition(";")[0]
    assert len(pathlib.Path(kept).read_text().splitlines()) == 9
    assert not list((tmp_path / "cache").glob("a-*/")), "no set is left"


def test_a_held_out_part_of_long_examples_is_passed_over(load, tmp_path, capsys):
    rows = [{"ID": f"{n}", "text": f"問い{n}", "output": "答え"} for n in range(60)]
    source = sources.SourceConfig(path=write(tmp_path / "a.jsonl", map(json.dumps, rows)))
    held = sources.heldout_groups(sources.SourceConfig(path=source.path, holdout=0.05))
    assert 0 < len(held) < 60
    for row in rows:
        if row["text"] in held:
            row["output"] = "長い答え。" * 100
    path = write(tmp_path / "a.jsonl", map(json.dumps, rows))
    found = load(data=path, holdout=0.05)
    assert found.held_out == {} and found.train.num_rows > 0
    assert "a: its held-out part is not evaluated" in capsys.readouterr().out
    # Negative controls: in longer rows it is there; as EVAL_DATA, which was asked for, it stops.
    assert list(load(data=path, holdout=0.05, seq_len=2048, batch_tokens=2048).held_out) == ["a"]
    write(tmp_path / "long.jsonl", [json.dumps(r) for r in rows if r["text"] in held])
    with pytest.raises(errors.DataError, match="JI-LOAD-002"):
        load(data=path, eval_data=f"{tmp_path}/long.jsonl")


def test_prepare_says_once_that_nothing_is_held_out(tokenizer_path, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("ただ一つの本文です。" * 50, "utf-8")
    prepare_command.prepare(
        data=dataset.DataConfig(data=f"{tmp_path}/one.txt", holdout=0.01, seq_len=128),
        tokenizer=tokenizer_path,
        template="",
        prepare_config=prepare.PrepareConfig(cache_dir=str(tmp_path / "cache"), workers=1),
        parts=prepare_parts.PartsConfig(),
        heldout_list="",
        seed=0,
    )
    assert capsys.readouterr().out.count("nothing of it is held out") == 1
