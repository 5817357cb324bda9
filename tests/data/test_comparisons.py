"""Rows of comparisons: every answer of a prompt in one row, whole, and found again by its number."""

import numpy as np
import openpyxl
import pytest

from jinstr import errors
from jinstr.data import bad_rows, comparisons, formats, loader, prepared, records, sources


def ranked(name, prompt, answers, ranks):
    """Answers of the given lengths behind a prompt; ids tell prompt, answer and place."""
    texts = [
        np.array([*range(prompt), *(1000 * (k + 1) + n for n in range(length))])
        for k, length in enumerate(answers)
    ]
    masks = [np.arange(len(ids)) >= prompt for ids in texts]
    return records.Ranked(
        src="s", id=name, part=1, prompt_length=prompt,
        answers=tuple(texts), masks=tuple(masks), ranks=tuple(ranks),
    )  # fmt: skip


def test_answers_stand_side_by_side_and_are_read_to_their_end():
    rows = [[ranked("a", 3, [2, 4], [2, 1]), ranked("b", 1, [1, 1, 2], [1, 1, 2])], []]
    batch = comparisons.assemble(rows, seq_len=24, pad_id=7, prompts=2, answers=3)
    assert batch["answers"].tolist()[0] == [[1, 2, 0], [3, 4, 5]]
    assert batch["ranks"].tolist()[0] == [[2, 1, 0], [1, 1, 2]]
    assert not batch["answers"][1].any() and not batch["segment_ids"][1].any()
    place = batch["segment_ids"][0] == 2
    assert batch["tokens"][0, place].tolist() == [0, 1, 2, 2000, 2001, 2002, 2003]
    assert batch["targets"][0, place].tolist() == [1, 2, 2000, 2001, 2002, 2003, 7]
    # The answer is trained as a target, the prompt is not, nor is what follows the last token.
    assert batch["loss_weights"][0, place].tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert batch["positions"][0, place].tolist() == list(range(7))


def test_a_record_takes_the_places_of_all_its_answers():
    record = ranked("a", 3, [2, 4], [2, 1])
    assert records.length(record) == 5 + 7
    again = records.unpack("prompts", records.pack(record, "<u2"), "<u2")
    assert again.ranks == (2, 1) and all(map(np.array_equal, again.answers, record.answers))


@pytest.fixture(scope="module")
def rankings(make, world):
    return make(sources.SourceConfig(path=f"{world}/rankings.jsonl"))


def test_a_loader_of_rankings_gives_every_prompt_once(rankings):
    config = loader.LoaderConfig(seq_len=256, batch_rows=4)
    opened = loader.Loader(rankings, config, comparisons.KINDS)
    manifest = prepared.PreparedSet(rankings[0].path).manifest
    assert {*manifest["answers"]} == {"4", "5"} and sum(manifest["answers"].values()) == 300
    seen, shapes = [], set()
    for number, batch in enumerate(opened.evaluation_batches()):
        shapes.add(tuple(batch["answers"].shape))
        assert batch["answers"].max() == batch["segment_ids"].max() > 0
        rows = range(4 * number, min(4 * number + 4, opened.num_rows))
        for row, kept in enumerate(opened.read_records(rows)):
            seen += [record.id for record in kept]
            for group, record in enumerate(kept):
                for answer, ids in enumerate(record.answers):
                    place = batch["segment_ids"][row] == batch["answers"][row, group, answer]
                    assert batch["tokens"][row, place].tolist() == ids.tolist()
                assert batch["ranks"][row, group, : len(record.ranks)].tolist() == [*record.ranks]
    assert len(shapes) == 1 and len(seen) == len({*seen}) == 300
    names = [name for _, name, _ in opened.example_ids(0)]
    assert len({*names}) == (opened.read(0)["answers"][..., 0] > 0).sum()


def test_text_and_comparisons_are_not_taken_for_each_other(rankings, sets):
    config = loader.LoaderConfig(seq_len=256, batch_rows=4)
    with pytest.raises(errors.ConfigError, match="JI-LOAD-001.*text or conversations"):
        loader.Loader(rankings, config)
    with pytest.raises(errors.ConfigError, match="JI-LOAD-001.*rankings or pairs"):
        loader.Loader(sets, config, comparisons.KINDS)


def test_who_ranked_is_kept(make, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"id": "1", "prompt": "海は？", "chosen": "青いです。", "rejected": "赤い。", "annotator": "田中"}\n', "utf-8"
    )  # fmt: skip
    (place,) = make(sources.SourceConfig(path=str(path)))
    (record,) = prepared.PreparedSet(place.path).read([0])
    assert record.annotator == "田中" and record.ranks == (1, 2)


def sheet(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


HEADERS = ["質問", "回答1", "順位1", "回答2", "順位2", "回答3", "順位3", "評価者"]
FIELDS = "prompt=質問,annotator=評価者," + ",".join(
    f"response{n}=回答{n},rank{n}=順位{n}" for n in (1, 2, 3)
)


def test_a_sheet_of_rankings(make, tmp_path):
    rows = [
        HEADERS,
        ["海は？", "青い。", 2, "青いです。", 1, "赤い。", "３位", "田中"],
        ["山は？", "高い。", 1, "低い。", 1.0, "読めない", None, "鈴木"],
    ]
    path = sheet(tmp_path / "rankings.xlsx", rows)
    (place,) = make(sources.SourceConfig(path=str(path), fields=FIELDS))
    found = {record.annotator: record for record in prepared.PreparedSet(place.path).read([0, 1])}
    assert found["田中"].ranks == (2, 1, 3) and found["鈴木"].ranks == (1, 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["海は？", "青い。", 1, "青いです。", "良い", None, None, ""], "rank2 is '良い'"),
        (["海は？", "青い。", 1, "青いです。", None, None, None, ""], "1 ranked answers"),
    ],
)
def test_a_line_that_ranks_nothing_is_told(tmp_path, row, words):
    path = sheet(tmp_path / "rankings.xlsx", [HEADERS, row])
    with pytest.raises(errors.DataError, match=words):
        list(sources.read(sources.SourceConfig(path=str(path), fields=FIELDS)))


def labelled(name, prompt, answer, label):
    """A single answer whose ids tell whose it is: prompt `name` counts from 100 · name, its answer from 50 above."""
    ids = np.array(
        [*(100 * name + n for n in range(prompt)), *(100 * name + 50 + n for n in range(answer))]
    )
    return records.Ranked(
        src="s", id=str(name), part=1, prompt_length=prompt, answers=(ids,),
        masks=(np.arange(len(ids)) >= prompt,), ranks=(label,),
    )  # fmt: skip


def test_prompts_with_answers_to_others():
    rows = [
        [labelled(1, 3, 2, 1), labelled(2, 1, 4, 2), labelled(3, 2, 1, 1)],
        [labelled(4, 2, 2, 1)],
        [],
    ]
    batch = comparisons.assemble(rows, seq_len=16, pad_id=7, prompts=3, answers=1)
    found = comparisons.with_others(batch, pad_id=7)
    assert all(found[name] is batch[name] for name in batch)
    other = {n.removeprefix("others_"): x for n, x in found.items() if n.startswith("others_")}
    texts = [other["tokens"][0, other["segment_ids"][0] == n].tolist() for n in (1, 2, 3)]
    assert texts[0] == [100, 101, 102, 250, 251, 252, 253]
    assert texts[1] == [200, 350] and texts[2] == [300, 301, 150, 151]
    trained = [other["targets"][0, other["loss_weights"][0] > 0].tolist()]
    assert trained == [[250, 251, 252, 253, 350, 150, 151]]
    assert other["answers"][..., 0].tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]
    assert not other["segment_ids"][1:].any()  # alone in its row, and no row at all
    assert (other["segment_ids"] > 0).sum(1).tolist()[0] == (batch["segment_ids"][0] > 0).sum()
    # Negative control: the batch itself has each prompt with its own answer.
    assert batch["tokens"][0, batch["segment_ids"][0] == 2].tolist() == [200, 250, 251, 252, 253]


def test_labels_are_read(tmp_path):
    rows = [
        {"prompt": "海は？", "response": "青い。", "label": "desired"},
        {
            "prompt": [{"role": "user", "content": "空は？"}],
            "completion": "知らない。",
            "label": False,
        },
        {"instruction": "山は？", "response": "高い。", "label": "True", "annotator": "p1"},
    ]
    examples = [next(formats.FORMATS["labelled"].examples(row)) for row in rows]
    assert [e["label"] for e in examples] == ["desired", "undesired", "desired"]
    assert [e["response"] for e in examples] == ["青い。", "知らない。", "高い。"]
    assert examples[1]["contents"] == ["空は？"] and examples[2]["annotator"] == "p1"
    assert all(formats.fits(row) == ["labelled"] for row in rows)
    with pytest.raises(bad_rows.BadRow, match="'good' is not desired"):
        next(formats.FORMATS["labelled"].examples(rows[0] | {"label": "good"}))
