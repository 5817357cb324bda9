"""Workbooks for raters: what is written, what comes back, what is refused, and that nothing tells a model."""

import csv
import datetime
import io
import pathlib
import re
import shutil
import subprocess
import zipfile

import openpyxl
import pytest
from openpyxl.xml import constants

from jinstr import errors
from jinstr.human import cells, design, sheet_reading, sheet_results, sheet_tables, sheets
from jinstr.human import sheet_looks as looks
from jinstr.human import study as study_lib

MODELS = ("houou-7b-secret", "gpt-secret")
# What Excel, LibreOffice, CSV or XML might turn into something else.
NASTY = (
    "=1+1",
    "+81-3-1234-5678",
    "-1",
    "@SUM(A1)",
    "＝ＳＵＭ（Ａ１）",
    '=HYPERLINK("http://example.com","押す")',
    "#N/A",
    "TRUE",
    "007",
    "2024/1/5",
    "1-2",
    "1E5",
    "５点です。Ａが勝ち",
    "_x000D_ と _x005F_ と x005F_ と _x000d_",
    "一行目\r\n二行目\r三行目\n",
    "絵文字👨‍👩‍👧と𠮷野家とが\u3099",
    "　全角の空白で始まり、終わる　",
    " \t前後に空白 ",
    "'引用符で始まる",
    '"二重",引用,符',
    "<b>太字</b> & &amp; &#10; ]]>",
    "\u2028行の区切り\u0085",
    "\ufeff先頭にBOM",
    "長" * 32_767,
)


def study_of(texts, raters=1, **more):
    """A study in which the two answers to the n-th prompt hold the n-th text."""
    items = [
        study_lib.Item(
            id=f"p{n}",
            roles=("user",),
            contents=(f"質問{n}",),
            answers={MODELS[0]: (text,), MODELS[1]: (f"別の答え{n}",)},
        )
        for n, text in enumerate(texts)
    ]
    return design.lay_out(items, MODELS, design.DesignConfig(raters=raters, **more))


def made(tmp_path, study):
    study_lib.write(tmp_path, study)
    return sheets.write_all(tmp_path, study)


def edit(path, change, to=None):
    """The workbook as a rater saves it after `change(sheet, column of each heading)`."""
    book = openpyxl.load_workbook(path)
    sheet = book["評価"]
    places, upper = {}, ""
    for column in range(1, sheet.max_column + 1):
        above, below = (sheet.cell(row, column).value for row in (1, 2))
        upper = above or upper
        places[upper + (below or "")] = column
    change(sheet, places)
    book.save(to or path)


def read(tmp_path, study, *paths):
    return sheet_reading.read_study(study, paths or sorted((tmp_path / "sheets").iterdir()))


def fill(verdicts, score=3):
    """Fills in every row: verdicts by turns, one score everywhere."""

    def change(sheet, places):
        for row in range(3, sheet.max_row + 1):
            sheet.cell(row, places["優劣"]).value = verdicts[(row - 3) % len(verdicts)]
            for name, column in places.items():
                if name[:-1] in ("流暢性", "正確性", "詳細性", "関連性"):
                    sheet.cell(row, column).value = score
            sheet.cell(row, places["コメント"]).value = f"{row}行目の\nコメント"

    return change


def test_what_is_filled_in_comes_back(tmp_path):
    study = study_of(["あ", "い", "う"])
    (path,) = made(tmp_path, study)
    assert study_lib.read(tmp_path) == study
    edit(path, fill(["A", "Ｂ", "引分"], score="５"))
    reading = read(tmp_path, study)
    assert reading.problems == [] and reading.refused == set()
    found = sheet_results.judgements_of(study, reading)
    assert [j.verdict for j in found] == ["left", "right", "tie"]
    for j, row in zip(found, study.rows):
        assert (j.left, j.right) == row.shown and j.prompt == row.item and j.rater == "rater01"
        assert set(j.scores_left.values()) == set(j.scores_right.values()) == {5}
        assert j.comment == f"{row.number + 2}行目の\nコメント"
        assert j.where == f"{path} 評価!O{row.number + 2}"


def converted(path, folder, kind="xlsx"):
    """The file after LibreOffice has opened and saved it."""
    if shutil.which("soffice") is None:
        pytest.skip("LibreOffice is not installed (apt-get install libreoffice-calc)")
    home = folder / "home"
    command = [
        "soffice",
        f"-env:UserInstallation=file://{home}",
        "--headless",
        "--convert-to",
        kind,
    ]
    subprocess.run(
        [*command, "--outdir", folder, path], check=True, capture_output=True, timeout=240
    )
    return folder / f"{path.stem}.{kind.partition(':')[0]}"


@pytest.mark.peers
def test_nasty_texts_survive_libreoffice(tmp_path):
    study = study_of(NASTY)
    (path,) = made(tmp_path, study)
    comments = dict(enumerate(NASTY[:-1], 3))

    def change(sheet, places):
        fill(["A"])(sheet, places)
        for row, text in comments.items():
            cell = sheet.cell(row, places["コメント"])
            cell.value = cells.escaped(text)
            cell.data_type = "s"

    edit(path, change)
    through = converted(path, tmp_path / "lo")
    reading = read(tmp_path, study, through)
    assert reading.problems == [] and len(reading.entries) == len(NASTY)
    for row in study.rows:
        if row.number + 2 in comments:
            wanted = cells.lines(comments[row.number + 2])
            assert reading.entries[row.id].comments["comment"] == wanted


@pytest.mark.peers
def test_what_the_test_of_libreoffice_sees(tmp_path):
    """Negative control: texts written as openpyxl takes them do not come through."""
    book = openpyxl.Workbook()
    for row, text in enumerate(("=1+1", "_x000D_", "長" * 32_768), 1):
        book.active.cell(row, 1).value = text
    book.save(tmp_path / "plain.xlsx")
    through = openpyxl.load_workbook(
        converted(tmp_path / "plain.xlsx", tmp_path / "lo"), data_only=True
    )
    found = [through.active.cell(row, 1).value for row in (1, 2, 3)]
    assert found[0] == 2 and found[1] != "_x000D_" and len(found[2]) == 32_767


def test_texts_are_strings_and_never_formulas(tmp_path):
    study = study_of(NASTY)
    (path,) = made(tmp_path, study)
    assert read(tmp_path, study).problems == []
    book = openpyxl.load_workbook(path)
    kinds = {
        cell.data_type
        for row in book["評価"].iter_rows(min_row=3)
        for cell in row
        if cell.value is not None
    }
    assert kinds == {"s", "n"}  # n: the number of the row
    # One formula is ours: how many rows are filled in.
    formulas = [
        c.value for s in book.worksheets for row in s.iter_rows() for c in row if c.data_type == "f"
    ]
    assert len(formulas) == 1 and "COUNTA('評価'!O3:O26)" in formulas[0]


def test_the_same_study_gives_the_same_bytes(tmp_path):
    study = study_of(["あ", "い"], raters=2, overlap=2)
    one, other = made(tmp_path / "a", study), made(tmp_path / "b", study)
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
    assert one[0].read_bytes() != one[1].read_bytes()


def all_bytes(path):
    """Everything a rater can find in a file: its name and its unpacked parts."""
    found = [path.name.encode(), path.read_bytes()]
    with zipfile.ZipFile(path) as archive:
        found += [
            part for name in archive.namelist() for part in (name.encode(), archive.read(name))
        ]
    return b"\0".join(found)


def test_nothing_tells_a_model(tmp_path):
    study = study_of(["あ", "い"], raters="佐藤,鈴木", overlap=2, repeats=0.5)
    for path in made(tmp_path, study):
        data = all_bytes(path)
        assert "質問1".encode() in data  # Negative control: what is in a file is found.
        for name in (*MODELS, "houou", "secret", "seed"):
            assert name.encode() not in data
    key = (tmp_path / "key" / "study.json").read_bytes()
    assert all(name.encode() in key for name in MODELS)


def test_answers_that_name_a_model_are_listed():
    items = study_of(["わたしはHOUOU-7B-secretです", "い"]).items
    assert study_lib.naming(items, MODELS) == ["p0"]


def test_empty_lines_around_an_answer_do_not_tell_models_apart(tmp_path):
    study = study_of(["\n\n  \n　字下げした答え\n\n", "い"])
    item = study.items[0]
    assert study_lib.answer_text(item, MODELS[0]) == "　字下げした答え"
    assert item.answers[MODELS[0]] == ("\n\n  \n　字下げした答え\n\n",)
    assert study_lib.answer_text(study_of([" \n"]).items[0], MODELS[0]) == "（回答なし）"


def test_looks(tmp_path):
    study = study_of(["あ" * 3000, "い"])
    (path,) = made(tmp_path, study)
    book = openpyxl.load_workbook(path)
    assert book.sheetnames == ["使い方", "評価基準", "評価", "長文"]
    sheet = book["評価"]
    assert sheet.freeze_panes == "C3" and sheet.print_title_rows == "$1:$2"
    assert {str(area) for area in sheet.merged_cells.ranges} >= {"A1:A2", "C1:C2", "G1:H1", "M1:N1"}
    lists = {
        str(v.sqref): v.formula1 for v in sheet.data_validations.dataValidation if v.type == "list"
    }
    assert (
        lists["O3:O4"] == '"A,B,引き分け"' and lists["G3:G4"] == '"1,2,3,4,5"' and len(lists) == 9
    )
    assert sheet.protection.sheet and not sheet.protection.password
    open_cells = {c.column_letter for c in sheet[3] if not c.protection.locked}
    assert open_cells == set("DFGHIJKLMNOP")
    hidden = {name for name, column in sheet.column_dimensions.items() if column.hidden}
    assert hidden & {"Q"} and sheet["Q1"].value == "row_id" and sheet["R1"].value == "check"
    # The long text is there in full, and the number of its row leads to it.
    (long,) = [row for row in study.rows if row.item == "p0"]
    link = sheet.cell(2 + long.number, 1).hyperlink
    assert link.location == "'長文'!A2" and sheet.cell(5 - long.number, 1).hyperlink is None
    column = 3 + long.shown.index(MODELS[0])
    pieces = [book["長文"].cell(row, column).value for row in range(2, book["長文"].max_row + 1)]
    assert "".join(filter(None, pieces)) == "あ" * 3000 and len(pieces) > 1
    assert max(looks.lines_of(piece, 76) for piece in pieces) <= looks.TALLEST


def test_a_text_that_fits_no_cell_is_refused_by_address(tmp_path):
    study = study_of(["あ", "い" * 32_768, "う\ud800"])
    with pytest.raises(errors.DataError, match="JI-SHEET-001: 2 cells") as caught:
        sheets.write_all(tmp_path, study)
    for item, why in (("p1", "32,768 characters"), ("p2", "no character")):
        (row,) = [row for row in study.rows if row.item == item]
        letter = "CE"[row.shown.index(MODELS[0])]
        assert f"sheets/rater01.xlsx 評価!{letter}{row.number + 2}: " in str(caught.value)
        assert why in str(caught.value)
    assert not (tmp_path / "sheets").exists()
    # Negative control: one character less.
    assert sheets.write_all(tmp_path, study_of(["い" * 32_767]))


def problems_of(reading):
    return {(p.code, p.cell, p.value) for p in reading.problems}


def test_odd_cells_are_named_and_other_rows_kept(tmp_path):
    study = study_of(["あ", "い", "う", "え", "お", "か"])
    (path,) = made(tmp_path, study)

    def change(sheet, places):
        fill(["A"])(sheet, places)
        sheet.cell(3, places["優劣"]).value = "C"
        sheet.cell(4, places["流暢性A"]).value = 6
        sheet.cell(4, places["関連性B"]).value = "よい"
        sheet.cell(5, places["正確性A"]).value = datetime.datetime(2024, 1, 5)
        sheet.cell(6, places["優劣"]).value = "=A1"

    edit(path, change)
    reading = read(tmp_path, study)
    assert problems_of(reading) == {
        ("JI-SHEET-004", "O3", "C"),
        ("JI-SHEET-005", "G4", "6"),
        ("JI-SHEET-005", "N4", "よい"),
        ("JI-SHEET-005", "I5", "2024-01-05 00:00:00"),
        ("JI-SHEET-004", "O6", "=A1"),
    }
    assert all(p.file == str(path) and p.sheet == "評価" and p.japanese for p in reading.problems)
    kept = sheet_results.judgements_of(study, reading)
    assert [j.where for j in kept] == [f"{path} 評価!O7", f"{path} 評価!O8"]
    assert sheet_results.progress(study, reading)["rater01"]["refused"] == 4


def test_a_changed_id_or_text_is_refused(tmp_path):
    study = study_of(["あ", "い", "う", "え", "お", "か"])
    (path,) = made(tmp_path, study)

    def change(sheet, places):
        fill(["B"])(sheet, places)
        sheet.cell(3, places["row_id"]).value = "r00000000000f"
        sheet.cell(4, places["check"]).value = "t0000000000000000"
        sheet.cell(5, places["A"]).value += "。"
        sheet.cell(6, places["質問"]).value = None
        # The texts of two rows change places, as when some columns only are sorted.
        sheet.cell(7, places["B"]).value, sheet.cell(8, places["B"]).value = (
            sheet.cell(8, places["B"]).value,
            sheet.cell(7, places["B"]).value,
        )

    edit(path, change)
    reading = read(tmp_path, study)
    places = {(code, cell) for code, cell, _ in problems_of(reading)}
    assert places == {
        ("JI-SHEET-007", "Q3"),
        ("JI-SHEET-008", "R4"),
        ("JI-SHEET-008", "C5"),
        ("JI-SHEET-008", "B6"),
        ("JI-SHEET-008", "E7"),
        ("JI-SHEET-008", "E8"),
    }
    assert sheet_results.judgements_of(study, reading) == []
    edit(path, lambda sheet, places: sheet.delete_cols(places["row_id"]))
    assert {p.code for p in read(tmp_path, study).problems} == {"JI-SHEET-006"}


def test_half_filled_sheets(tmp_path):
    study = study_of(["あ", "い", "う", "え"], raters="佐藤,鈴木", overlap=2)
    path, _ = made(tmp_path, study)

    def change(sheet, places):
        sheet.cell(3, places["優劣"]).value = "A"  # no scores
        sheet.cell(4, places["流暢性A"]).value = 3  # no verdict
        sheet.cell(5, places["コメント"]).value = "専門外でわかりません"

    edit(path, change)
    reading = read(tmp_path, study, path)
    assert reading.problems == []
    table = sheet_results.progress(study, reading)
    states = ("rows", "done", "unscored", "begun", "held", "empty", "missing", "refused")
    assert [table["佐藤"][s] for s in states] == [4, 1, 1, 1, 1, 1, 0, 0]
    assert [table["鈴木"][s] for s in states] == [4, 0, 0, 0, 0, 0, 4, 0]
    lines = sheet_results.told(table)
    assert lines[1].startswith("鈴木") and lines[1].split()[1:] == [
        "4",
        "0",
        "0",
        "0",
        "0",
        "0",
        "0",
        "4",
    ]


def test_two_copies_of_a_sheet(tmp_path):
    study = study_of(["あ", "い", "う"])
    (path,) = made(tmp_path, study)
    half, other = path.with_name("a.xlsx"), path.with_name("b.xlsx")
    edit(path, lambda sheet, places: fill(["A"])(sheet, places), half)
    assert read(tmp_path, study).problems == []  # an empty copy beside a full one
    shutil.copy(half, other)
    assert read(tmp_path, study).problems == []
    edit(half, lambda sheet, places: sheet.cell(4, places["優劣"], "B"), other)
    reading = read(tmp_path, study)
    (found,) = reading.problems
    assert (found.code, found.cell) == ("JI-SHEET-009", "O4") and f"{half} 評価!O4" in found.english
    assert len(sheet_results.judgements_of(study, reading)) == 2


def test_a_verdict_against_all_scores_is_told_and_kept(tmp_path):
    study = study_of(["あ", "い", "う"])
    (path,) = made(tmp_path, study)

    def change(sheet, places):
        fill(["A", "B", "引き分け"])(sheet, places)
        for row in (3, 4, 5):
            for axis in ("流暢性", "正確性", "詳細性", "関連性"):
                sheet.cell(row, places[f"{axis}B"]).value = 4
        sheet.cell(5, places["詳細性B"]).value = 3

    edit(path, change)
    reading = read(tmp_path, study)
    (line,) = sheet_results.contradictions(study, reading)
    assert line.startswith(f"{path} 評価!O3: the verdict is A, all four scores are higher for B")
    assert len(sheet_results.judgements_of(study, reading)) == 3


def test_columns_that_a_rater_adds_and_rows_that_are_hidden(tmp_path):
    study = study_of(["あ", "い"])
    (path,) = made(tmp_path, study)

    def change(sheet, places):
        fill(["A"])(sheet, places)
        sheet.insert_cols(1)
        sheet.cell(1, 1).value = "メモ"
        sheet.auto_filter.ref = "A2:S4"
        sheet.row_dimensions[3].hidden = True

    edit(path, change)
    reading = read(tmp_path, study)
    (found,) = reading.problems
    assert (found.code, found.cell, found.value) == ("JI-SHEET-003", "A1", "メモ")
    assert len(sheet_results.judgements_of(study, reading)) == 2


READING = '<rPh sb="0" eb="1"><t>フリガナ</t></rPh><phoneticPr fontId="1"/>'


def as_excel_saves(path):
    """The workbook with its strings in one table, each with the reading of what was typed, as Excel keeps it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name).decode() for name in archive.namelist()}
    strings = []

    def moved(found):
        strings.append(f"<si>{found[1]}{READING}</si>")
        return f't="s"><v>{len(strings) - 1}</v>'

    for name in parts:
        if name.startswith("xl/worksheets/"):
            parts[name] = re.sub('t="inlineStr"><is>(.*?)</is>', moved, parts[name], flags=re.S)
    parts["xl/sharedStrings.xml"] = (
        f'<sst xmlns="{constants.SHEET_MAIN_NS}">{"".join(strings)}</sst>'
    )
    entry = f'<Override PartName="/xl/sharedStrings.xml" ContentType="{constants.SHARED_STRINGS}"/>'
    kinds = "[Content_Types].xml"
    parts[kinds] = parts[kinds].replace("</Types>", entry + "</Types>")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return len(strings)


def test_texts_survive_the_table_of_strings_with_readings(tmp_path):
    study = study_of(NASTY)
    (path,) = made(tmp_path, study)
    edit(path, fill(["A"]))
    assert as_excel_saves(path) > 100
    reading = read(tmp_path, study)
    assert reading.problems == []
    assert len(sheet_results.judgements_of(study, reading)) == len(NASTY)
    # Negative control: openpyxl itself takes "x005F_" out of such texts.
    plain = openpyxl.load_workbook(path)["評価"]
    values = {cell.value for row in plain.iter_rows() for cell in row}
    text = "_x000D_ と _x005F_ と x005F_ と _x000d_"
    assert text in NASTY and cells.escaped(text) not in values


def test_files_that_are_no_sheets(tmp_path):
    study = study_of(["あ"])
    (path,) = made(tmp_path, study)
    broken, other = path.with_name("broken.xlsx"), path.with_name("other.xlsx")
    broken.write_bytes(b"PK\x03\x04 cut short")
    openpyxl.Workbook().save(other)
    damaged = path.with_name("damaged.xlsx")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(damaged, "w") as target:
        for part in source.namelist():
            data = source.read(part)
            target.writestr(part, data[: len(data) // 2] if part.endswith("sheet3.xml") else data)
    path.with_name("~$rater01.xlsx").write_bytes(b"lock")
    path.with_name("old.xls").write_bytes(b"")
    paths, others = sheet_tables.files_of(str(path.parent))
    assert [p.name for p in paths] == ["broken.xlsx", "damaged.xlsx", "other.xlsx", "rater01.xlsx"]
    assert others == [str(path.with_name("old.xls"))]
    reading = sheet_reading.read_study(study, paths)
    assert [(p.code, pathlib.Path(p.file).name) for p in reading.problems] == [
        ("JI-SHEET-002", "broken.xlsx"),
        ("JI-SHEET-002", "damaged.xlsx"),
        ("JI-SHEET-002", "other.xlsx"),
    ]
    assert len(reading.entries) == 1


def as_csv(path, encoding):
    """What Excel makes of the rating sheet when it saves it as CSV."""
    sheet = openpyxl.load_workbook(path)["評価"]
    out = io.StringIO()
    writer = csv.writer(out)
    for row in sheet.iter_rows():
        writer.writerow(["" if cell.value is None else cell.value for cell in row])
    target = path.with_suffix(".csv")
    errors_ = "replace" if encoding == "cp932" else "strict"
    target.write_bytes(out.getvalue().encode(encoding, errors_))
    return target


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "cp932"])
def test_csv(encoding, tmp_path):
    study = study_of(["普通の答え", "絵文字😀と〜と①", '改行\nと,と"引用"'])
    (path,) = made(tmp_path, study)
    edit(path, fill(["A", "Ｂ", "引分"]))
    reading = read(tmp_path, study, as_csv(path, encoding))
    assert reading.problems == []
    found = sheet_results.judgements_of(study, reading)
    assert [j.verdict for j in found] == ["left", "right", "tie"]
    assert (
        found[0].where == f"{path.with_suffix('.csv')} O3"
        and found[0].comment == "3行目の\nコメント"
    )
    assert any("CP932" in note for note in reading.notes) == (encoding == "cp932")


def test_csv_that_was_changed(tmp_path):
    study = study_of(["普通の答え", "もう一つの答え"])
    (path,) = made(tmp_path, study)
    target = as_csv(path, "cp932")
    data = target.read_bytes()
    target.write_bytes(data.replace("普通".encode("cp932"), "特別".encode("cp932")))
    assert {p.code for p in read(tmp_path, study, target).problems} == {"JI-SHEET-008"}
    target.write_bytes(data.replace("普通".encode("cp932"), b"\xfc\xfc"))
    reading = read(tmp_path, study, target)
    assert any("bytes that are not CP932" in note for note in reading.notes)
    assert {p.code for p in reading.problems} == {"JI-SHEET-008"}


def test_rankings(tmp_path):
    items = [
        study_lib.Item(
            id=f"p{n}",
            roles=("user",),
            contents=(f"質問{n}",),
            answers={m: (f"{m}の答え{n}",) for m in "abcd"},
        )
        for n in range(3)
    ]
    items[2] = study_lib.Item(
        id="p2", roles=("user",), contents=("質問2",),
        answers={"a": ("同じ",), "b": ("違う",), "c": ("同じ\n",), "d": ("四つ目",)},
    )  # fmt: skip
    study = design.lay_out(items, list("abcd"), design.DesignConfig(mode="rank"))
    (path,) = made(tmp_path, study)

    def change(sheet, places):
        for row in study.rows:
            for letter, model in zip("ABCD", row.shown):
                rank = {"a": 2, "b": 1, "c": 2, "d": 4}[model]
                sheet.cell(row.number + 2, places[f"順位{letter}"]).value = f"{rank}位"

    edit(path, change)
    reading = read(tmp_path, study)
    assert reading.problems == []
    found = {row["id"]: row for row in sheet_results.rankings_of(study, reading)}
    assert len(found["p0"]["responses"]) == 4 and len(found["p2"]["responses"]) == 3
    ranks = {text: rank for text, rank in zip(found["p0"]["responses"], found["p0"]["ranks"])}
    assert ranks == {"aの答え0": 2, "bの答え0": 1, "cの答え0": 2, "dの答え0": 4}
    assert sorted(map(tuple, found["p2"]["models"])) == [("a", "c"), ("b",), ("d",)]
    pairs = sheet_results.judgements_of(study, reading)
    winners = {(j.prompt, frozenset((j.left, j.right))): j.winner for j in pairs}
    assert len(pairs) == 6 + 6 + 5  # nobody compared a and c of the last prompt
    assert winners["p0", frozenset("ac")] is None and winners["p0", frozenset("cd")] == "c"
    assert winners["p2", frozenset("cb")] == "b" and winners["p2", frozenset("cd")] == "c"
    edit(path, lambda sheet, places: sheet.cell(3, places["順位B"], "5"))
    assert {p.code for p in read(tmp_path, study).problems} == {"JI-SHEET-005"}
    edit(path, lambda sheet, places: setattr(sheet.cell(3, places["順位B"]), "value", None))
    assert sheet_results.progress(study, read(tmp_path, study))["rater01"]["begun"] == 1
