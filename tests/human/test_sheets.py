"""Workbooks for raters: what is written, what comes back, what is refused, and that nothing tells a model."""

import shutil
import subprocess

import openpyxl
import pytest

from jinstr.human import cells, design, sheet_reading, sheet_results, sheets
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
    if shutil.which("soffice") is None:
        pytest.skip("LibreOffice is not installed (apt-get install libreoffice-calc)")
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
