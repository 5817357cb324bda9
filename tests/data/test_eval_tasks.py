"""Questions with known answers: how they are read, and what counts as right."""

import json

import pytest

from jinstr import errors
from jinstr.data.eval_tasks import questions as questions_lib


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return f"task={path}"


def test_names_are_the_longest_values():
    values = ["1", "10", "0", "山", "山田"]
    assert questions_lib.names("答えは10です", values) == {"10"}
    assert questions_lib.names("山田と1", values) == {"山田", "1"}
    assert questions_lib.names("どれでもない", values) == set()


def test_a_right_answer_names_the_value_and_no_other(tmp_path):
    row = {
        "text": "色は？",
        "output": "赤です。",
        "answer": "赤",
        "candidates": ["赤", "青", "白", "黒"],
    }
    (task,) = questions_lib.parse(write(tmp_path / "a.jsonl", row, row, row), "", 0)
    assert not task.chooses and task.chance == 0.25 and task.name == "task"
    found = questions_lib.naming_accuracy(task.questions, ["赤い。", "赤か青。", "わかりません。"])
    assert found == {"accuracy": 1 / 3}


def test_choices_are_whole_answers(tmp_path):
    row = {"q_id": 1, "question": "どれ", "label": 3} | {f"choice{n}": f"候補{n}" for n in range(5)}
    (task,) = questions_lib.parse(write(tmp_path / "a.jsonl", row, row), "", 1)
    assert task.chooses and task.chance == 0.2 and len(task.questions) == 1
    assert task.questions[0].answer == "候補3" and len(task.questions[0].candidates) == 5


def test_written_answers_are_compared_after_nfkc(tmp_path):
    row = {"instruction": "足すと？", "input": "", "output": "１２"}
    (task,) = questions_lib.parse(write(tmp_path / "a.jsonl", row, row), "", 0)
    assert task.metrics[0](["１２", "１２"], ["12\n", "13"]) == {"accuracy": 0.5}


def test_an_answer_that_is_no_candidate_is_refused(tmp_path):
    row = {"text": "色は？", "output": "赤です。", "answer": "青", "candidates": ["赤", "青"]}
    with pytest.raises(errors.DataError, match="a.jsonl:1: the output must name '青'"):
        questions_lib.parse(write(tmp_path / "a.jsonl", row), "", 0)


def test_a_benchmark_is_asked_as_its_first_template_does(tmp_path):
    row = {"q_id": 1, "question": "どれ", "label": 3} | {f"choice{n}": f"候補{n}" for n in range(5)}
    path = write(tmp_path / "a.jsonl", row, row | {"q_id": 2}).partition("=")[2]
    (task,) = questions_lib.parse(f"jcommonsenseqa={path}", "", 1)
    assert task.name == "jcommonsenseqa" and len(task.questions) == 1 and task.chance == 0.2
    assert task.questions[0].candidates == ("0", "1", "2", "3", "4")
    assert task.questions[0].answer == "3"
    assert "選択肢：0.候補0," in task.questions[0].messages[-1]["content"]
    # Under another name the same file is asked as its rows are.
    (plain,) = questions_lib.parse(f"quiz={path}", "", 1)
    assert plain.questions[0].answer == "候補3"


def test_a_written_benchmark_reads_answers_by_its_rule(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("一足す一は？\t2\n二千百二十五は？\t2,125\n", "utf-8")
    (task,) = questions_lib.parse(f"mgsm_ja={path}", "", 0)
    assert not task.chooses and task.chance == 0.0
    targets = [question.answer for question in task.questions]
    assert task.metrics[0](targets, ["1+1で、2です", "2,125円"]) == {"exact_match": 1.0}
    assert task.metrics[0](targets, ["二", "2,125円"]) == {"exact_match": 0.5}
