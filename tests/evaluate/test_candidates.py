"""Answers of models and the prompt sets they answer, in the shapes in which they are found."""

import json

import pytest

from jinstr import errors
from jinstr.decode import requests
from jinstr.evaluate import candidates, prompt_sets
from jinstr.human import study as study_lib

SETS = {
    "rakuda_v2_questions.jsonl": (40, 1),
    "ja_vicuna_qa_questions.jsonl": (80, 1),
    "ja_mt_bench_questions.jsonl": (80, 2),
    "elyza_tasks_100.jsonl": (100, 1),
}


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.mark.parametrize("name", SETS)
def test_published_prompt_sets(name, shared_data, tmp_path):
    count, turns = SETS[name]
    path = shared_data / "eval" / name
    items = prompt_sets.read(path)
    assert len(items) == count == len({item.id for item in items})
    assert all(item.roles == ("user",) * turns for item in items)
    raw = [row for _, row in requests.read_rows(path)]
    assert items[3].contents == tuple(raw[3].get("turns") or [raw[3]["input_text"]])
    if "elyza" in name:
        assert items[0].id == "1" and items[0].reference == raw[0]["output_text"]
        aid = study_lib.aid_text(items[0])
        assert "【採点の観点】" in aid and raw[0]["eval_aspect"].strip() in aid
    else:
        assert items[0].id == str(raw[0]["question_id"]) and items[0].category == raw[0]["category"]
    answers = []
    for model in ("x", "y"):
        choices = {i.id: [{"index": 0, "turns": [f"{model}{i.id}"] * turns}] for i in items}
        rows = [{"question_id": k, "model_id": model, "choices": v} for k, v in choices.items()]
        answers.append(lines(tmp_path / f"{model}.jsonl", rows))
    found, models, notes = candidates.read(",".join(answers), str(path), every=False)
    assert models == ["x", "y"] and notes == [] and len(found) == count
    assert found[5].answers["y"] == (f"y{items[5].id}",) * turns
    shown = study_lib.answer_text(found[5], "y"), study_lib.prompt_text(found[5])
    assert ("【回答2】" in shown[0]) == ("【質問2】" in shown[1]) == (turns == 2)


PROMPTS = [{"id": "a", "prompt": "質問a"}, {"id": "b", "prompt": "質問b"}]


def generated(path, *, answers=("一", "二")):
    """A file as jinstr generate writes it, of two models with so many answers each."""
    prompts = requests.read_prompts(lines(path.with_suffix(".prompts"), PROMPTS))
    made = {
        p["id"]: [
            {"text": f"{m}{p['id']}{n}", "model": m, "temperature": 1.0, "finish": "stop"}
            for m in ("base", "sft")
            for n in answers
        ]
        for p in prompts
    }
    requests.write_jsonl(path, list(requests.sheet(prompts, made)))
    return str(path)


def test_what_generate_wrote(tmp_path):
    path = generated(tmp_path / "g.jsonl", answers=("一",))
    items, models, notes = candidates.read(path, "", every=False)
    assert models == ["base", "sft"] and notes == []
    assert [item.answers for item in items] == [
        {"base": (f"base{k}一",), "sft": (f"sft{k}一",)} for k in "ab"
    ]
    assert items[0].contents == ("質問a",)


def test_several_answers_of_a_model(tmp_path):
    path = generated(tmp_path / "g.jsonl")
    items, models, notes = candidates.read(path, "", every=True)
    assert models == ["base#1", "base#2", "sft#1", "sft#2"] and notes == []
    assert {items[0].answers[m][0] for m in models} == {"basea一", "basea二", "sfta一", "sfta二"}
    items, models, notes = candidates.read(path, "", every=False)
    assert models == ["base", "sft"] and len(notes) == 2 and "the first is compared" in notes[0]
    assert items[0].answers["sft"][0] in ("sfta一", "sfta二")


def test_what_generate_wrote_to_several_turns(tmp_path):
    prompt = {"id": "1", "roles": ["user"], "contents": ["一問"], "turns": ["一問", "二問"]}
    made = [
        {"text": [f"{m}一", f"{m}二"], "model": m, "temperature": 1.0, "finish": "stop"}
        for m in ("base", "sft")
    ]
    path = tmp_path / "g.jsonl"
    requests.write_jsonl(path, list(requests.sheet([prompt], {"1": made})))
    ((item,), _, notes) = candidates.read(str(path), "", every=False)
    assert item.roles == ("user", "user") and item.contents == ("一問", "二問") and notes == []
    assert item.answers == {"base": ("base一", "base二"), "sft": ("sft一", "sft二")}


def test_one_answer_a_line(tmp_path):
    a = lines(tmp_path / "a.jsonl", [{"id": "a", "output": "ああ"}, {"id": "z", "output": "余り"}])
    b = lines(tmp_path / "b.jsonl", [{"id": k, "response": k * 2} for k in "ab"])
    prompts = lines(tmp_path / "p.jsonl", PROMPTS)
    items, models, notes = candidates.read(f"x={a},y={b}", prompts, every=False)
    assert [item.answers for item in items] == [{"x": ("ああ",), "y": ("aa",)}, {"y": ("bb",)}]
    assert notes[0].endswith("1 lines answer prompts that " + prompts + " does not hold")
    assert notes[1] == "x has no answer to 1 prompts: b"


@pytest.mark.parametrize(
    "rows, prompts, name, code",
    [
        ([{"id": "a", "output": 3}], PROMPTS, "x", "010"),
        ([{"id": "a"}], PROMPTS, "x", "010"),
        ([{"id": "a", "output": "答え"}], PROMPTS, "", "010"),
        ([{"id": "z", "output": "答え"}], PROMPTS, "x", "004"),
        ([{"id": "a", "output": "答え", "prompt": "別の質問"}], PROMPTS, "x", "008"),
        ([{"id": "a", "output": ["一", "二"]}], PROMPTS, "x", "006"),
        ([{"id": "a", "output": "答え"}], [{"id": "a", "turns": ["一", "二"]}], "x", "006"),
        ([{"id": "a", "output": "答え"}], [*PROMPTS, PROMPTS[0]], "x", "001"),
        ([{"id": "a", "output": "答え"}], [], "x", "002"),
        ([{"id": "a", "output": "答え"}], [{"id": "a", "turns": "一"}], "x", "003"),
        ([{"id": "a", "output": "答え"}], PROMPTS, "x", "005"),
    ],
)
def test_what_cannot_be_compared_is_named(rows, prompts, name, code, tmp_path):
    answers = lines(tmp_path / "x.jsonl", rows)
    other = lines(
        tmp_path / "y.jsonl", [{"id": "a", "output": "yの答え"}] if code != "005" else rows
    )
    prompts = lines(tmp_path / "p.jsonl", prompts)
    asked = f"{name}={answers}" if name else answers
    asked += f",y={other}" if code != "005" else ""
    with pytest.raises(errors.DataError, match=f"JI-CANDIDATES-{code}"):
        candidates.read(asked, prompts, every=False)


def test_names_are_distinct(tmp_path):
    path = generated(tmp_path / "g.jsonl")
    for asked in (f"x={path},x={path}", "", " , "):
        with pytest.raises(errors.ConfigError, match="JI-CANDIDATES-007"):
            candidates.read(asked, "", every=False)


def test_a_file_of_two_models_has_no_one_name(tmp_path):
    with pytest.raises(errors.DataError, match="JI-CANDIDATES-009"):
        candidates.read(f"x={generated(tmp_path / 'g.jsonl')}", "", every=False)
