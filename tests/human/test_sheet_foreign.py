"""Sheets of the layout that the talk shows: two-row merged headers, no ids, a model always on one side."""

import csv
import io
import shutil
import subprocess

import openpyxl
import pytest

from jinstr import errors
from jinstr.human import sheet_columns, sheet_foreign, sheet_results
from jinstr.human import study as study_lib

AXES = ("Fluency", "Accuracy", "Detailed", "Relevance")
MODELS = ("houou", "gpt")
ROWS = (
    ("一票の格差とは？", "Aの答え1", "対策があり良い", "Bの答え1", "詳しいが正確でない", (5, 5, 5, 2, 5, 5, 5, 5), "A"),
    ("富士山の高さは？", "Aの答え2", None, "Bの答え2", None, ("５", "４", 3, 3, 3, 3, "3点", 4.0), "Ｂ"),
    ("七夕の由来は？", "Aの答え3", None, "Bの答え3", None, (4,) * 8, "引分"),
)  # fmt: skip


def sheet_of_the_talk(sheet, rows=ROWS, title=False):
    """One row for each prompt below two lines of heading."""
    top = 2 if title else 1
    if title:
        sheet.cell(1, 1).value = "評価シート（Rakuda 40問）"
    for column, name in enumerate(("prompt", "A", "Aコメント", "B", "Bコメント"), 1):
        sheet.cell(top, column).value = name
        sheet.merge_cells(start_row=top, end_row=top + 1, start_column=column, end_column=column)
    for n, axis in enumerate(AXES):
        sheet.cell(top, 6 + 2 * n).value = axis
        sheet.merge_cells(start_row=top, end_row=top, start_column=6 + 2 * n, end_column=7 + 2 * n)
        sheet.cell(top + 1, 6 + 2 * n).value, sheet.cell(top + 1, 7 + 2 * n).value = "A", "B"
    sheet.cell(top, 14).value = "優劣"
    sheet.merge_cells(start_row=top, end_row=top + 1, start_column=14, end_column=14)
    for number, (prompt, a, comment_a, b, comment_b, scores, verdict) in enumerate(rows, top + 2):
        for column, value in enumerate((prompt, a, comment_a, b, comment_b, *scores, verdict), 1):
            sheet.cell(number, column).value = value


def saved(path, rows=ROWS, title=False):
    book = openpyxl.Workbook()
    sheet_of_the_talk(book.active, rows, title)
    book.save(path)
    return path


def check(study, reading, file, first=3):
    assert reading.problems == []
    found = sheet_results.judgements_of(study, reading)
    assert [j.verdict for j in found] == ["left", "right", "tie"]
    assert {(j.left, j.right) for j in found} == {MODELS}
    assert found[0].scores_left == dict.fromkeys(("fluency", "accuracy", "detail", "relevance"), 5)
    assert found[0].scores_right == {"fluency": 5, "accuracy": 2, "detail": 5, "relevance": 5}
    assert found[1].scores_left["fluency"] == 5 and found[1].scores_left["relevance"] == 3
    assert found[0].comment_right == "詳しいが正確でない" and found[1].comment_left == ""
    assert [j.where.rpartition("!")[2] for j in found] == [f"N{first + n}" for n in range(3)]
    assert study.items[0].answers == {"houou": ("Aの答え1",), "gpt": ("Bの答え1",)}


@pytest.mark.parametrize("title", [False, True])
def test_the_layout_of_the_talk(title, tmp_path):
    paths = [saved(tmp_path / f"{rater}.xlsx", title=title) for rater in ("佐藤", "鈴木")]
    study, reading = sheet_foreign.read(paths[:1], MODELS, [])
    check(study, reading, paths[0], 4 if title else 3)
    study, reading = sheet_foreign.read(paths, MODELS, [])
    assert study.raters == ("佐藤", "鈴木") and len(study.items) == 3 and len(study.rows) == 6
    assert "houou is always A" in reading.notes[0]
    study_lib.write(tmp_path, study)
    assert study_lib.read(tmp_path) == study


def test_ids_of_a_prompt_set(tmp_path):
    path = saved(tmp_path / "佐藤.xlsx")
    known = study_lib.Item(
        id="q7", roles=("user",), contents=("富士山の高さは?",), answers={}, category="地理"
    )
    study, _ = sheet_foreign.read([path], MODELS, [known])
    assert study.items[1].id == "q7" and study.items[1].category == "地理"
    assert len({item.id for item in study.items}) == 3 and study.items[0].id != "q7"


def test_csv_of_the_talk(tmp_path):
    sheet = openpyxl.load_workbook(saved(tmp_path / "佐藤.xlsx")).active
    out = io.StringIO()
    csv.writer(out).writerows(
        [["" if c.value is None else c.value for c in row] for row in sheet.iter_rows()]
    )
    for encoding in ("utf-8-sig", "cp932"):
        path = tmp_path / "佐藤.csv"
        path.write_bytes(out.getvalue().encode(encoding))
        study, reading = sheet_foreign.read([path], MODELS, [])
        assert reading.problems == [] and study.raters == ("佐藤",)
        found = sheet_results.judgements_of(study, reading)
        assert [j.verdict for j in found] == ["left", "right", "tie"]


@pytest.mark.peers
def test_the_layout_of_the_talk_through_libreoffice(tmp_path):
    if shutil.which("soffice") is None:
        pytest.skip("LibreOffice is not installed (apt-get install libreoffice-calc)")
    path = saved(tmp_path / "佐藤.xlsx")
    home = f"-env:UserInstallation=file://{tmp_path / 'home'}"
    command = [
        "soffice",
        home,
        "--headless",
        "--convert-to",
        "xlsx",
        "--outdir",
        tmp_path / "lo",
        path,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    study, reading = sheet_foreign.read([tmp_path / "lo" / "佐藤.xlsx"], MODELS, [])
    check(study, reading, path)


def test_what_is_odd_is_named(tmp_path):
    rows = [
        *ROWS,
        (ROWS[0][0], "別の答え", None, "Bの答え1", None, (3,) * 8, "A"),
        (None, "Aの答え4", None, "Bの答え4", None, (3,) * 8, "A"),
        ("四つ目の質問", "Aの答え5", None, "Bの答え5", None, (3, 3, 3, 9, 3, 3, 3, 3), "どっちか"),
        ROWS[1],
    ]
    path = saved(tmp_path / "佐藤.xlsx", rows)
    study, reading = sheet_foreign.read([path], MODELS, [])
    assert [(p.code, p.cell) for p in reading.problems] == [
        ("JI-SHEET-011", "A6"),
        ("JI-SHEET-013", "A7"),
        ("JI-SHEET-004", "N8"),
        ("JI-SHEET-005", "I8"),
        ("JI-SHEET-012", "A9"),
    ]
    assert len(sheet_results.judgements_of(study, reading)) == 3


def test_several_sheets_in_a_file_are_several_raters(tmp_path):
    book = openpyxl.Workbook()
    book.active.title = "佐藤"
    sheet_of_the_talk(book.active)
    sheet_of_the_talk(book.create_sheet("鈴木"))
    book.create_sheet("メモ").cell(1, 1).value = "覚え書き"
    book.save(tmp_path / "all.xlsx")
    study, reading = sheet_foreign.read([tmp_path / "all.xlsx"], MODELS, [])
    assert study.raters == ("all/佐藤", "all/鈴木") and reading.problems == []


@pytest.mark.parametrize("models", ["houou,gpt", "A=houou", "A=x,B=x", "A=x,C=y", "A=x,B=", ""])
def test_sides_that_are_not_said(models):
    with pytest.raises(errors.ConfigError, match="JI-SHEET-010"):
        sheet_foreign.sides(models)
    assert sheet_foreign.sides("Ａ=houou, b=gpt") == MODELS


@pytest.mark.parametrize(
    "heading, wanted",
    [
        (
            ("質問", "回答A", "回答B", "優劣"),
            {"prompt": 0, "answer_a": 1, "answer_b": 2, "verdict": 3},
        ),
        (("プロンプト", "Ａ", "Ｂ", "流暢性（Ａ）", "判定"), {"fluency_a": 3, "verdict": 4}),
        (("prompt", "A", "B", "Bの正確さ", "winner"), {"accuracy_b": 3}),
    ],
)
def test_headings_of_one_line(heading, wanted):
    found = sheet_columns.heading([heading, ("問い", "答え", "答え", "A")])
    assert wanted.items() <= found.keys.items() and found.rows == (0,)


def test_what_is_no_heading():
    assert sheet_columns.heading([("質問", "A", "優劣")]) is None
    assert sheet_columns.heading([("質問", "A", "B", "コメント")]) is None
    assert sheet_columns.heading([]) is None
    found = sheet_columns.heading([("質問", "A", "B", "優劣", "勝敗", "担当")])
    assert found.twice == [(4, "勝敗")] and found.unknown == [(5, "担当")]


def test_headings_of_our_own_are_known():
    for mode, answers in (("ab", 2), ("rank", 9)):
        columns = sheet_columns.columns(mode, answers, True)
        upper = [
            c.upper if not n or columns[n - 1].upper != c.upper else None
            for n, c in enumerate(columns)
        ]
        found = sheet_columns.heading([upper, [c.lower or None for c in columns]])
        assert found.keys == {c.key: n for n, c in enumerate(columns)}
        assert found.unknown == found.twice == []
