"""Names that examples have for themselves: the same wherever the data lie, and never shared by other documents."""

import json
import shutil

import openpyxl
import pytest

from jinstr.data import bad_rows, readers, sources


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def ids(path, **settings):
    report = bad_rows.Report()
    found = sources.read(sources.SourceConfig(path=str(path), **settings), report)
    return [example["id"] for example in found], dict(report.dropped)


@pytest.fixture
def tree(tmp_path):
    """Two folders with files of the same names, as text and as rows."""
    for folder in ("a", "b"):
        (tmp_path / "books" / folder).mkdir(parents=True)
        (tmp_path / "books" / folder / "1.txt").write_text(f"{folder}の本文。", "utf-8")
        write(
            tmp_path / "c" / folder / "train" / "0.jsonl", {"text": f"{folder}一"}, {"text": "二"}
        )
    return tmp_path


def test_files_of_one_name_are_other_documents(tree):
    assert ids(tree / "books") == (["a/1.txt", "b/1.txt"], {})
    assert ids(tree / "c")[0] == [f"{f}/train/0.jsonl:{n}" for f in "ab" for n in (1, 2)]
    assert ids(tree / "c" / "*" / "train" / "*.jsonl")[0] == ids(tree / "c")[0]
    assert ids(tree / "books" / "a" / "1.txt") == (["1.txt"], {})


def test_joined_files_of_one_name_are_told_apart(tree):
    one, two = tree / "books" / "a" / "1.txt", tree / "books" / "b" / "1.txt"
    assert ids(f"{one}+{two}") == (["a/1.txt", "b/1.txt"], {})
    assert ids(f"{one}+{tree}/c/b/train")[0] == ["1.txt", "0.jsonl:1", "0.jsonl:2"]
    # The same file twice, spelled in two ways, is one file.
    assert len(readers.files_of(f"{one}+{tree}/books/../books/a/1.txt")) == 1


def test_ids_do_not_depend_on_the_place_of_the_folder(tree, tmp_path_factory):
    book = openpyxl.Workbook()
    for sheet in (book.active, book.create_sheet("二")):
        for row in (["text"], ["文"], ["章"]):
            sheet.append(row)
    book.save(tree / "c" / "sheets.xlsx")
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(tree / "c", elsewhere)
    found, dropped = ids(tree / "c")
    assert ids(elsewhere) == (found, dropped) and len(found) == 8 and not dropped
    assert "sheets.xlsx, sheet 二, row 3" in found
    assert ids(tree) != (found, dropped)  # negative control: another root gives other names


def test_an_index_of_pandas_names_no_text(tmp_path):
    for shard in range(2):
        rows = [{"index": n, "text": f"{shard}の文{n}"} for n in range(3)]
        write(tmp_path / f"{shard}.jsonl", *rows)
    assert ids(tmp_path) == ([f"{s}.jsonl:{n}" for s in (0, 1) for n in (1, 2, 3)], {})
    # Negative control: an id of its own is taken, and one text under it is kept.
    for shard in range(2):
        write(tmp_path / f"{shard}.jsonl", {"id": 7, "index": shard, "text": f"文{shard}"})
    assert ids(tmp_path) == (["7"], {"same id": 1})
    write(
        tmp_path / "0.jsonl", {"instruction": "問", "output": "答", "index": "3", "category": "x"}
    )
    assert ids(tmp_path / "0.jsonl")[0] == ["3"]


def test_works_in_two_real_files_are_read_once(shared_data):
    one, two = shared_data / "corpus" / "aozora.jsonl", shared_data / "corpus" / "aozora_large"
    if not one.exists() or not two.exists():
        pytest.skip("no two files of Aozora works")
    alone = set(ids(one)[0]), set(ids(two)[0])
    both, dropped = ids(f"{one}+{two}")
    assert set(both) == alone[0] | alone[1] and len(both) == len(set(both))
    assert dropped == {"same id": len(alone[0] & alone[1])} and dropped["same id"] > 0
