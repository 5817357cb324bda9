"""Published benchmarks: their official files, how they are asked, and rows that are refused by place."""

import json

import pytest

from jinstr import errors
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.data.eval_tasks import benchmarks

FILES = {  # benchmark → (official file, examples)
    "jcommonsenseqa": ("jcommonsenseqa_valid.json", 1119),
    "jnli": ("jnli_valid.json", 2434),
    "jsquad": ("jsquad_valid.json", 4442),
    "mgsm_ja": ("mgsm_ja.tsv", 250),
    "jmmlu": ("jmmlu_japanese_history.csv", 150),
    "jsts": ("jsts_valid.json", 1457),
    "jaquad": ("../sft/jaquad_train_000*.json", 4057),
    "pfgen": ("pfgen_questions.jsonl", 50),
}


@pytest.mark.parametrize("name", FILES)
def test_official_files_are_read_whole(shared_data, name):
    file, count = FILES[name]
    benchmark = benchmarks.find(name)
    examples = benchmark.read(str(shared_data / "eval" / file))
    assert len(examples) == count and len({example.id for example in examples}) == count
    assert len(benchmark.templates) >= 3
    assert len({template.name for template in benchmark.templates}) == len(benchmark.templates)
    for template in benchmark.templates:
        asked = benchmark_lib.ask(template, examples[0], examples[1:3])
        last = list(examples[0].fields.values())[-1]
        text = examples[0].fields.get("question", last)
        assert text in asked.plain and text in asked.messages[-1]["content"]
        assert len(asked.messages) == 5 and asked.messages[-1]["role"] == "user"
        assert len(asked.candidates) == len(examples[0].choices)
    assert benchmark.chooses == bool(examples[0].choices)
    assert benchmark.main in {
        key for metric in benchmark.metrics for key in metric([("1",)], ["1"])
    }


def test_the_near_name_is_offered():
    with pytest.raises(
        errors.ConfigError, match="no benchmark jcommonsensqa; did you mean jcommonsenseqa"
    ):
        benchmarks.find("jcommonsensqa")


QUESTION = {"q_id": 1, "question": "どれ", "label": 3} | {
    f"choice{n}": f"候補{n}" for n in range(5)
}


def read(tmp_path, name, *rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return benchmarks.find(name).read(str(path))


def test_plain_and_chat_say_the_same(tmp_path):
    first, second = read(tmp_path, "jcommonsenseqa", QUESTION, QUESTION | {"q_id": 2, "label": 0})
    template = benchmarks.find("jcommonsenseqa").templates[0]
    asked = benchmark_lib.ask(template, second, [first])
    listed = "0.候補0,1.候補1,2.候補2,3.候補3,4.候補4"
    question = f"質問：どれ\n選択肢：{listed}"
    head = template.instruction
    assert asked.plain == f"{head}\n\n{question}\n回答：3\n\n{question}\n回答："
    assert [turn["content"] for turn in asked.messages] == [f"{head}\n\n{question}", "3", question]
    assert asked.candidates == ("0", "1", "2", "3", "4") and asked.answer == "0"


@pytest.mark.parametrize(
    "text, choice",
    [("3", "候補3"), (" ３\n\n質問：", "候補3"), ("3です", "3です"), ("候補3", ""), ("", "")],
)
def test_written_labels_become_choices(tmp_path, text, choice):
    benchmark = benchmarks.find("jcommonsenseqa")
    (example,) = read(tmp_path, "jcommonsenseqa", QUESTION)
    asked = benchmark_lib.ask(benchmark.templates[0], example)
    assert benchmark_lib.predicted(benchmark, example, asked, text) == choice
    assert benchmark_lib.chosen(example, 3) == "候補3" == example.targets[0]


def test_labels_must_suffice(tmp_path):
    (example,) = read(tmp_path, "jcommonsenseqa", QUESTION)
    for labels in (("A", "B", "C", "D"), ("A", "B", "C", "D", "D")):
        template = benchmark_lib.Template(name="few", question="{question}", labels=labels)
        with pytest.raises(errors.ConfigError, match="JI-EVAL-011.*few.*5 choices of example 1"):
            benchmark_lib.ask(template, example)
    template = benchmark_lib.Template(name="none", question="{passage}")
    with pytest.raises(
        errors.ConfigError, match="JI-EVAL-010.*names passage; the example has question"
    ):
        benchmark_lib.ask(template, example)


def test_equal_choices_are_one_answer(tmp_path):
    (example,) = read(tmp_path, "jcommonsenseqa", QUESTION | {"choice1": "候補3"})
    digits, *_, kana = benchmarks.find("jcommonsenseqa").templates
    # As a shot the official label stands, and either choice is the right text.
    assert benchmark_lib.ask(digits, example).answer == "3"
    assert benchmark_lib.ask(kana, example).answer == "エ"
    assert benchmark_lib.chosen(example, 1) == example.targets[0]


LACKS = {key: value for key, value in QUESTION.items() if key != "label"}


@pytest.mark.parametrize(
    "row, message",
    [
        (QUESTION | {"label": True}, "label is True, not a whole number from 0 to 4"),
        (QUESTION | {"label": 1.0}, "label is 1.0, not a whole number from 0 to 4"),
        (QUESTION | {"label": "1"}, "label is '1', not a whole number from 0 to 4"),
        (QUESTION | {"label": 5}, "label is 5, not a whole number from 0 to 4"),
        (LACKS, "no field label: test sets without answers cannot be scored"),
        (QUESTION | {"choice4": " "}, "choice4 is ' ', not text"),
        (QUESTION | {"question": None}, "question is None, not text"),
        ({"文": "x"}, r"no field choice0 \(fields: 文\)"),
        (QUESTION | {"q_id": None}, "q_id is None, not a name or whole number"),
        (QUESTION, "the id 1 stands at .*a.jsonl:1 too"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(errors.DataError, match=f"a.jsonl:2: {message}; correct the row"):
        read(tmp_path, "jcommonsenseqa", QUESTION, row)


def test_bad_labels_of_sentence_pairs(tmp_path):
    row = {"sentence_pair_id": "0", "sentence1": "雨だ。", "sentence2": "晴れだ。"}
    with pytest.raises(errors.DataError, match="a.jsonl:1: label is None, not one of entailment"):
        read(tmp_path, "jnli", row)
    with pytest.raises(errors.DataError, match="a.jsonl:1: label is 1, not one of entailment"):
        read(tmp_path, "jnli", row | {"label": 1})


@pytest.mark.parametrize("label", [True, "2.0", 5.5, None, float("nan")])
def test_bad_similarities(tmp_path, label):
    row = {"sentence_pair_id": "0", "sentence1": "雨だ。", "sentence2": "晴れだ。"}
    assert read(tmp_path, "jsts", row | {"label": 2})[0].targets == ("2.0",)
    with pytest.raises(errors.DataError, match="a.jsonl:1: label is .*, not a number from 0 to 5"):
        read(tmp_path, "jsts", row | {"label": label})


def test_jemhopqa(tmp_path):
    row = {"qid": "a", "type": "comparison", "question": "どちらが先？", "answer": "YES"}
    row |= {"derivations": [["甲", "年", ["1900"]]], "page_ids": ["1"], "time_dependent": False}
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([row, row | {"qid": "b", "type": "compositional"}]), "utf-8")
    first, second = benchmarks.find("jemhopqa").read(str(path))
    assert (first.targets, first.group, second.group) == (("YES",), "comparison", "compositional")
    path.write_text(json.dumps([row, row | {"qid": "b", "answer": ""}]), "utf-8")
    with pytest.raises(errors.DataError, match="dev.json, item 2: answer is '', not text"):
        benchmarks.find("jemhopqa").read(str(path))


XML = """<?xml version='1.0' encoding="UTF-8"?>
<questions>
<question id="A-1"><text>県は？</text><answers><answer>愛知県</answer><answer>岐阜県</answer></answers></question>
<question id="A-2"><text>誰？</text><answers><answer>-</answer></answers><meta><B1>誰</B1></meta></question>
</questions>
"""


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("<answer>-</answer>", "", r"question 2 \(A-2\): no answers"),
        ("<answer>-</answer>", "<answer></answer>", r"question 2 \(A-2\): an answer is empty"),
        ("<text>誰？</text>", "", r"question 2 \(A-2\): no text"),
        ("A-2", "A-1", r"question 2 \(A-1\): the id A-1 stands at .*question 1"),
        (' id="A-2"', "", r"question 2 \(no id\): id is None"),
        ("</questions>", "", "not XML"),
        ("<questions>", '<!DOCTYPE q [<!ENTITY a "x">]><questions>', "defines entities"),
    ],
)
def test_niilc(tmp_path, old, new, message):
    path = tmp_path / "niilc.xml"
    path.write_text(XML, "utf-8")
    first, second = benchmarks.find("niilc").read(str(path))
    assert (first.targets, second.targets) == (("愛知県,岐阜県",), ("-",))
    assert first.id == "A-1" and first.fields["question"] == "県は？"
    path.write_text(XML.replace(old, new), "utf-8")
    with pytest.raises(errors.DataError, match=f"niilc.xml.*{message}"):
        benchmarks.find("niilc").read(str(path))


def test_files_of_ones_own(tmp_path):
    rows = [
        {"input": "首都は？", "target": "東京"},
        {"input": "色は？", "targets": ["赤", "青"], "group": "色"},
    ]
    first, second = read(tmp_path, "written", *rows)
    assert (first.id, first.targets) == ("a.jsonl:1", ("東京",))
    assert (second.targets, second.group) == (("赤", "青"), "色")
    rows = [
        {"id": 7, "input": "首都は？", "choices": ["大阪", "東京"], "target": "東京"},
        {"id": 8, "input": "首都は？", "choices": ["大阪", "東京"], "label": 0},
    ]
    first, second = read(tmp_path, "choices", *rows)
    assert (first.id, first.right, second.targets) == ("7", 1, ("大阪",))
    asked = benchmark_lib.ask(benchmarks.find("choices").templates[0], first)
    assert (
        asked.plain.endswith("質問：首都は？\n選択肢：0.大阪,1.東京\n回答：")
        and asked.answer == "1"
    )


@pytest.mark.parametrize(
    "name, row, message",
    [
        ("written", {"input": "問"}, r"one of target and targets must be there \(fields: input\)"),
        ("written", {"input": "問", "target": "", "id": 1}, "target has '', which is not text"),
        ("written", {"input": "問", "targets": []}, r"targets is \[\], neither text nor a list"),
        ("written", {"input": "問", "target": 3}, "target is 3, neither text nor"),
        ("written", {"input": "問", "target": "答", "choices": ["答", "問"]}, "it has choices"),
        ("written", {"question": "問", "target": "答"}, "no field input"),
        ("choices", {"input": "問", "target": "答"}, "no field choices"),
        ("choices", {"input": "問", "target": "答", "choices": ["答"]}, "one choice is none"),
        (
            "choices",
            {"input": "問", "target": "三", "choices": ["一", "二"]},
            "the target '三' is 0 of the choices",
        ),
        (
            "choices",
            {"input": "問", "target": "一", "choices": ["一", "一"]},
            "the target '一' is 2 of the choices",
        ),
        (
            "choices",
            {"input": "問", "label": True, "choices": ["一", "二"]},
            "label is True, not a whole",
        ),
        ("choices", {"input": "問", "choices": ["一", "二"]}, "one of label and target"),
    ],
)
def test_bad_rows_of_ones_own(tmp_path, name, row, message):
    with pytest.raises(errors.DataError, match=f"a.jsonl:1: {message}"):
        read(tmp_path, name, row)


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_an_empty_file_has_no_examples(tmp_path, name):
    path = tmp_path / "empty.json"
    path.write_text("", "utf-8")
    with pytest.raises(errors.DataError, match="empty.json"):
        benchmarks.find(name).read(str(path))
    for metric in benchmarks.find(name).metrics:
        assert set(metric([], []).values()) == {0.0}


def squad(change):
    answers = [{"text": "九州", "answer_start": 0}, {"text": "九州", "answer_start": 0}]
    qa = {"id": "q", "question": "どこ", "answers": answers}
    paragraph = {"context": "島 [SEP] 九州の南。", "qas": [qa]}
    whole = {"data": [{"title": "島", "paragraphs": [paragraph]}]}
    change(whole, paragraph, qa)
    return json.dumps(whole, ensure_ascii=False)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w, p, q: w.pop("data"), r"\$: data is NoneType, not a list"),
        (
            lambda w, p, q: q.update(answers=[]),
            r"\$.data\[0\].paragraphs\[0\].qas\[0\]: no answers",
        ),
        (
            lambda w, p, q: q.update(answers=[{"text": ""}]),
            r"\$.data\[0\].paragraphs\[0\].qas\[0\].answers\[0\]: text is '', not text",
        ),
        (lambda w, p, q: p.pop("context"), r"\$.data\[0\].paragraphs\[0\]: no field context"),
        (lambda w, p, q: p.update(qas=[q, 1]), r"paragraphs\[0\].qas\[1\]: 1 has no fields"),
        (lambda w, p, q: p.update(qas=[q, q]), r"qas\[1\]: the id q stands at .*qas\[0\] too"),
        (lambda w, p, q: q.update(id=1.5), r"qas\[0\]: id is 1.5, not a name"),
    ],
)
def test_bad_paragraphs_are_named_by_their_place(tmp_path, change, message):
    path = tmp_path / "a.json"
    path.write_text(squad(lambda *_: None), "utf-8")
    (example,) = benchmarks.find("jsquad").read(str(path))
    assert example.targets == ("九州",) and example.fields["passage"] == "九州の南。"
    path.write_text(squad(change), "utf-8")
    with pytest.raises(
        errors.DataError, match=rf"a.json: {message}" if message[0] == "\\" else message
    ):
        benchmarks.find("jsquad").read(str(path))


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "a.json"
    for text, message in (
        (squad(lambda *_: None)[:-3], "not JSON"),
        ("[1]", "a list, not an object"),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(errors.DataError, match=f"a.json: .*{message}"):
            benchmarks.find("jsquad").read(str(path))


@pytest.mark.parametrize(
    "text, message",
    [
        ('"問\n一",ア,イ,ウ,エ,A\n問二,ア,イ,ウ,B\n', "a.csv:3: 5 cells, not 6"),
        ("問,ア,イ,ウ,エ,E\n", "a.csv:1: the answer is 'E', not A, B, C or D"),
        ("問,ア,イ,ウ,エ,a\n", "a.csv:1: the answer is 'a', not A"),
        ("問,ア,,ウ,エ,A\n", "a.csv:1: a question or choice is empty"),
        ('\n\n問,ア,"イ\n', "a.csv:3: "),
    ],
)
def test_bad_lines_of_tables_are_named(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(errors.DataError, match=message):
        benchmarks.find("jmmlu").read(str(path))


def test_subjects_are_file_names(tmp_path):
    for name in ("jmmlu_a.csv", "b.csv"):
        (tmp_path / name).write_text('\ufeff"問, {x}",ア,イ,ウ,エ,D\n', "utf-8")
    first, second = benchmarks.find("jmmlu").read(str(tmp_path))
    assert {first.group, second.group} == {"a", "b"} and first.id != second.id
    assert first.fields["question"] == "問, {x}" and first.targets == ("エ",)
    assert "{x}" in benchmark_lib.ask(benchmarks.find("jmmlu").templates[0], first).plain


@pytest.mark.parametrize(
    "text, message",
    [
        ("問\t1\t2\n", "a.tsv:1: 3 cells, not 2"),
        ("問\t1\n問\t二\n", "a.tsv:2: the answer '二' is no whole number"),
        ("問\t1.5\n", "a.tsv:1: the answer '1.5' is no whole number"),
    ],
)
def test_bad_lines_of_problems_are_named(tmp_path, text, message):
    path = tmp_path / "a.tsv"
    path.write_text(text, "utf-8")
    with pytest.raises(errors.DataError, match=message):
        benchmarks.find("mgsm_ja").read(str(path))
    path.write_text('"5"人\t2,125\n', "utf-8")
    (example,) = benchmarks.find("mgsm_ja").read(str(path))
    assert example.targets == ("2125",) and example.fields["question"] == '"5"人'
