"""jinstr compare from the command line: make, fill in, read; what is told and what is refused."""

import csv
import json
import pathlib

import openpyxl
import pytest

from jinstr import run
from jinstr.human import judgements


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Answers of two models to ten prompts."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("answers.jsonl").write_text(
        "".join(
            json.dumps({
                "id": str(n), "roles": ["user"], "contents": [f"質問{n}"],
                "responses": [f"答え{n}い", f"答え{n}ろ"], "models": [["base"], ["sft"]],
            }) + "\n"
            for n in range(10)
        )
    )  # fmt: skip
    return tmp_path


MAKE = ["compare", "make", "STUDY=s", "ANSWERS=answers.jsonl", "RATERS=佐藤,鈴木", "OVERLAP=2"]
READ = ["compare", "read", "STUDY=s"]


def fill(path, verdict, rows=None):
    """The rater writes one verdict into the first `rows` rows."""
    book = openpyxl.load_workbook(path)
    sheet = book["評価"]
    column = next(c.column for c in sheet[1] if c.value == "優劣")
    for row in range(3, 3 + (rows or sheet.max_row - 2)):
        sheet.cell(row, column).value = verdict
    book.save(path)


def test_from_answers_to_judgements(folder, capsys):
    assert run.main([*MAKE, "REPEATS=0.2"]) == 0
    out = capsys.readouterr().out
    assert "s/sheets/佐藤.xlsx: 12 rows, 2 of them repeats" in out and "s/key:" in out
    with open("s/key/assignments.csv", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and {row["A"] for row in rows} == {"base", "sft"}

    fill("s/sheets/佐藤.xlsx", "Ａ", rows=5)
    assert run.main(READ) == 0
    out = capsys.readouterr().out
    told = {
        line.split()[0]: line.split()[1:]
        for line in out.splitlines()
        if line.startswith(("佐", "鈴"))
    }
    assert told["佐藤"] == ["12", "5", "5", "0", "0", "7", "0", "0"] and told["鈴木"][1] == "0"
    assert out.splitlines()[1].startswith("鈴木")  # who has most left comes first
    assert out.splitlines()[-1] == "s/judgements.jsonl: 5 judgements of 5 rows; 19 rows to go"
    first = judgements.read("s/judgements.jsonl")
    assert [j.verdict for j in first] == ["left"] * 5

    # Read again as more comes in; one verdict was changed in between, and is told.
    fill("s/sheets/鈴木.xlsx", "引き分け")
    fill("s/sheets/佐藤.xlsx", "Ｂ", rows=1)
    assert run.main(READ) == 0
    out = capsys.readouterr().out
    assert (
        f"佐藤.xlsx 評価!O3: the verdict was {first[0].left} when the sheets were read before, now"
        in out
    )
    assert "17 judgements of 17 rows; 7 rows to go" in out
    assert len(judgements.read("s/judgements.jsonl")) == 17
    again = pathlib.Path("s/judgements.jsonl").read_bytes()
    assert run.main(READ) == 0 and pathlib.Path("s/judgements.jsonl").read_bytes() == again
    # Sheets that lie elsewhere; those of 佐藤 are not among them.
    pathlib.Path("back").mkdir()
    pathlib.Path("s/sheets/鈴木.xlsx").rename("back/すずき_記入済.xlsx")
    capsys.readouterr()
    assert run.main([*READ, "INPUT=back"]) == 0
    assert (
        capsys.readouterr().out.count("was judged when the sheets were read before, and is no more")
        == 5
    )


def test_problems_are_listed_and_the_rest_kept(folder, capsys):
    assert run.main(MAKE) == 0
    fill("s/sheets/佐藤.xlsx", "A")
    fill("s/sheets/佐藤.xlsx", "=C9", rows=1)
    fill("s/sheets/鈴木.xlsx", "B")
    fill("s/sheets/鈴木.xlsx", "C", rows=2)
    capsys.readouterr()
    assert run.main(READ) == 65
    told = capsys.readouterr()
    assert "JI-SHEET-004: s/sheets/佐藤.xlsx 評価!O3 '=C9': no verdict" in told.out
    assert told.out.count("JI-SHEET-004") == 3 and "JI-COMPARE-005: 3 problems" in told.err
    assert len(judgements.read("s/judgements.jsonl")) == 17
    with open("s/problems.csv", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["セル"] for row in rows] == ["O3", "O3", "O4"] and rows[0]["値"] == "「=C9」"
    assert all("優劣を読み取れません" in row["お願い"] for row in rows)
    fill("s/sheets/佐藤.xlsx", "A")
    fill("s/sheets/鈴木.xlsx", "B")
    assert run.main(READ) == 0 and len(judgements.read("s/judgements.jsonl")) == 20


def test_rank(folder, capsys):
    assert run.main([*MAKE, "MODE=rank"]) == 0
    book = openpyxl.load_workbook("s/sheets/佐藤.xlsx")
    sheet = book["評価"]
    column = next(c.column for c in sheet[1] if c.value == "順位")
    for row in range(3, sheet.max_row + 1):
        sheet.cell(row, column).value, sheet.cell(row, column + 1).value = 1, 2
    book.save("s/sheets/佐藤.xlsx")
    assert run.main(READ) == 0
    rankings = [json.loads(line) for line in open("s/rankings.jsonl", encoding="utf-8")]
    assert len(rankings) == 10 and {tuple(row["ranks"]) for row in rankings} == {(1, 2)}
    assert all(row["annotator"] == "佐藤" and row["prompt"].startswith("質問") for row in rankings)
    assert len(judgements.read("s/judgements.jsonl")) == 10


def test_export(folder, capsys):
    assert run.main(MAKE) == 0
    fill("s/sheets/佐藤.xlsx", "A")
    fill("s/sheets/鈴木.xlsx", "引き分け")
    assert run.main(READ) == 0
    words = ["compare", "export", "STUDY=s", "OUTPUT=out.jsonl"]
    capsys.readouterr()
    assert run.main(words) == 0
    assert "out.jsonl: 10 groups of 10 prompts, 20 judgements" in capsys.readouterr().out
    shown = {j.prompt: j.left for j in judgements.read("s/judgements.jsonl") if j.rater == "佐藤"}
    for line in open("out.jsonl", encoding="utf-8"):
        row = json.loads(line)
        assert row["models"][row["ranks"].index(1)] == [shown[row["id"]]]
    assert run.main([*words, "RATER_WEIGHTS=佐藤=0"]) == 65
    assert "nothing is left to train on (judged 10, tied 10)" in capsys.readouterr().err
    assert run.main(words[:-1]) == 78


@pytest.mark.parametrize(
    "words, code, status",
    [
        (["compare", "mkae", "STUDY=s"], "JI-COMPARE-001", 78),
        (["compare", "make", "STUDY=s"], "JI-COMPARE-003", 78),
        (["compare", "read", "STUDY=t"], "JI-COMPARE-004", 78),
        (["compare", "export", "STUDY=t", "OUTPUT=o"], "JI-COMPARE-009", 65),
        (["compare", "read", "STUDY=t", "INPUT=."], "JI-STUDY-001", 65),
        (["compare", "read", "STUDY=s", "MODELS=A=x,B=y"], "JI-COMPARE-006", 78),
        ([*MAKE, "OVERLAP=3"], "JI-STUDY-004", 78),
    ],
)
def test_what_is_refused(words, code, status, folder, capsys):
    assert run.main(words) == status
    assert code in capsys.readouterr().err


def test_a_study_is_never_written_over(folder, capsys):
    assert run.main(MAKE) == 0
    before = {path: path.read_bytes() for path in folder.rglob("s/**/*") if path.is_file()}
    for words in ([*MAKE, "SEED=1"], [*READ, "INPUT=s/sheets", "MODELS=A=x,B=y"]):
        assert run.main(words) == 78
        assert "take another folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("s/**/*") if path.is_file()}
    pathlib.Path("s/key/study.json").write_text('{"format": 2}')
    assert run.main(READ) == 65 and "JI-STUDY-002" in capsys.readouterr().err
