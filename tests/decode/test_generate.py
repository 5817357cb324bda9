"""Files and command of `jinstr generate`: prompts, the answer log, blind sheets."""

import dataclasses
import json
import pathlib

import pytest

from jinstr import errors
from jinstr.commands import generate as generate_lib
from jinstr.data import formats
from jinstr.decode import requests, sampler, text
from jinstr.text import render, templates


def test_prompts_are_read_in_every_shape_and_bad_lines_are_named(tmp_path):
    rows = [
        {"id": "a", "prompt": "富士山の高さは?"},
        {"instruction": "要約して", "input": "長い文"},
        {"ID": 7, "text": "質問"},
        {"messages": [{"role": "user", "content": "や"}, {"role": "assistant", "content": "答"}]},
        {"id": "e", "roles": ["system", "user"], "contents": ["丁寧に", "はい?"]},
    ]
    path = tmp_path / "prompts.jsonl"
    requests.write_jsonl(path, rows)
    got = requests.read_prompts(path)
    assert [p["id"] for p in got] == ["a", "2", "7", "4", "e"]
    assert got[1]["roles"] == ["user", "input"] and got[1]["contents"] == ["要約して", "長い文"]
    assert got[3]["roles"] == ["user"]
    lines = [
        {"roles": ["user", "input", "assistant"], "contents": ["要約", "文", "答"]},
        {"instruction": "要約", "context": "文"},
        {"instruction": "要約", "input": " "},
    ]
    requests.write_jsonl(path, lines)
    got = [(p["roles"], p["contents"]) for p in requests.read_prompts(path)]
    assert got == [(["user", "input"], ["要約", "文"])] * 2 + [(["user"], ["要約"])]
    inputs = '{"roles": ["input"], "contents": ["文"]}', '{"roles": [], "contents": []}'
    for bad in (
        "{",
        "[1]",
        '{"x": 1}',
        '{"prompt": 3}',
        '{"id": "a", "prompt": "二度目"}',
        *inputs,
    ):
        path.write_text(json.dumps(rows[0]) + "\n" + bad + "\n", encoding="utf-8")
        with pytest.raises(errors.DataError, match="prompts.jsonl:2"):
            requests.read_prompts(path)


@pytest.mark.parametrize("name", ["alpaca-ja", "chatml", "llm-jp-3", "rinna", "llama2"])
def test_prompts_are_what_training_has_in_front_of_the_answer(name, chat_tokenizer, tmp_path):
    row = {
        "instruction": "次の文を\n要約して。",
        "input": "昔々、山に白い雲が。",
        "output": "白い雲。",
    }
    template = templates.load(name, chat_tokenizer)
    (example,) = formats.FORMATS["alpaca"].examples(row)
    pairs = zip(example["roles"], example["contents"])
    turns = [{"role": role, "content": content} for role, content in pairs]
    trained = render.render(turns, template, chat_tokenizer)
    wanted = trained.tokens[: trained.loss_mask.index(True)]

    class Recorder:
        prompt_ids = text.TextSampler.prompt_ids
        tokenizer, longest_prompt = chat_tokenizer, 1000

        def answer_all(self, ids, rows, batch_rows):
            self.ids = ids
            return iter(())

    def prompt_of(line):
        requests.write_jsonl(tmp_path / "prompts.jsonl", [line])
        recorder = Recorder()
        recorder.template = template
        todo = [(p, 0, "key") for p in requests.read_prompts(tmp_path / "prompts.jsonl")]
        assert list(generate_lib.answer_each(recorder, todo, 1.0, 1)) == []
        return recorder.ids[0]

    assert prompt_of(row) == wanted
    # Negative control: both in one user turn, a line break between them.
    assert prompt_of({"prompt": f"{row['instruction']}\n{row['input']}"}) != wanted


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_line_separators_inside_a_prompt_end_no_line(tmp_path, mark):
    path = tmp_path / "prompts.jsonl"
    requests.write_jsonl(path, [{"prompt": f"一{mark}二"}, {"prompt": "三"}])
    got = requests.read_prompts(path)
    assert [p["contents"] for p in got] == [[f"一{mark}二"], ["三"]]
    assert [p["id"] for p in got] == ["1", "2"]
    # Negative control: Python takes the mark for the end of a line.
    assert len(path.read_text("utf-8").splitlines()) == 3


def test_answer_log_survives_a_cut_line(tmp_path):
    log = requests.AnswerLog(tmp_path / "x.answers.jsonl")
    log.add({"key": "k1", "text": "一\u2028行"})
    log.add({"key": "k2", "text": "二"})
    log.close()
    data = log.path.read_bytes()
    log.path.write_bytes(data[:-4])  # killed in the middle of a write
    again = requests.AnswerLog(log.path)
    assert list(again.answers) == ["k1"] and again.answers["k1"]["text"] == "一\u2028行"
    again.add({"key": "k2", "text": "二"})
    again.close()
    assert log.path.read_bytes() == data


def test_sheet_is_blind_and_distinct():
    prompt = {"id": "p", "roles": ["user"], "contents": ["?"]}

    def answer(model, words, temperature=0.7):
        return {"model": model, "text": words, "temperature": temperature, "finish": "end"}

    first = [answer("sft", "はい"), answer("base", "いいえ"), answer("base", "はい ", 1.0)]
    (row,) = requests.sheet([prompt], {"p": first})
    at = row["responses"].index("はい")
    assert sorted(row["responses"]) == ["いいえ", "はい"]
    assert row["models"][at] == ["base", "sft"] and row["models"][1 - at] == ["base"]
    assert row["temperatures"][at] == [0.7, 1.0]
    # Whoever wrote what, and in whatever order it came, raters see the same page.
    swapped = [answer("base", "はい"), answer("sft", "いいえ")][::-1]
    (other,) = requests.sheet([prompt], {"p": swapped})
    assert other["responses"] == row["responses"] and other["answer_ids"] == row["answer_ids"]
    assert other["models"] != row["models"]


def write_manifest(name, content):
    path = pathlib.Path("runs", name, "checkpoints", "5", "manifest.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def test_a_model_is_its_checkpoint_and_the_content_of_its_template(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_manifest("a", "first")

    def found(template=""):
        return requests.digest(generate_lib.identity("runs/a", 5, "params", template))

    names = [found(), found("chatml")]
    for path in ("my.jinja", "runs/a/template.jinja"):
        for content in ("一", "二"):
            pathlib.Path(path).write_text(content, "utf-8")
            names.append(found("my.jinja" if path == "my.jinja" else ""))
    write_manifest("a", "second")
    names.append(found())
    # my.jinja and the run's own template may hold the same: then they are the same.
    assert len(set(names)) == 5 and names[2:4] == names[4:6]
    assert found() == names[-1]


def test_generate_resumes_and_merges_models(monkeypatch, model, tokenizer, sentences, tmp_path):
    prompts = tmp_path / "in.jsonl"
    requests.write_jsonl(prompts, [{"id": f"q{i}", "prompt": s} for i, s in enumerate(sentences)])
    loaded = (*model, tokenizer, None, 5)
    monkeypatch.setattr(
        generate_lib.serving, "load_run", lambda *a, **k: generate_lib.serving.Run(*loaded)
    )
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        write_manifest(name, "first")
    settings = dict(
        models="a=runs/a,b=runs/b",
        input=str(prompts),
        answers=2,
        temperatures="0,1.0",
        sampling=sampler.SamplingConfig(max_new_tokens=12),
        batch_rows=3,
        step=None,
        weights="params",
        template="",
    )
    whole = generate_lib.generate(output=str(tmp_path / "whole.jsonl"), **settings)
    assert whole == {"prompts": 4, "answers": 24, "distinct": 12, "new": 24}
    # Both names are the same model: each answer is there once, with both names.
    rows = [
        json.loads(line) for line in (tmp_path / "whole.jsonl").read_text("utf-8").split("\n")[:-1]
    ]
    assert all(m == ["a", "b"] for row in rows for m in row["models"])
    # A log that stops in the middle of its tenth line: nothing finished is written twice, the result is the same.
    lines = (tmp_path / "whole.jsonl.answers.jsonl").read_bytes().split(b"\n")
    cut = tmp_path / "cut.jsonl.answers.jsonl"
    cut.write_bytes(b"\n".join(lines[:9]) + b"\n" + lines[9][:20])
    resumed = generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **settings)
    assert resumed["new"] == 24 - 9
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # Nothing has changed: nothing is new.
    assert generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **settings)["new"] == 0
    # One of the models was trained anew up to the same step.
    write_manifest("a", "second")
    assert generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **settings)["new"] == 12
    assert generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **settings)["new"] == 0
    # Other settings are other answers.
    changed = settings | {"sampling": dataclasses.replace(settings["sampling"], seed=1)}
    assert generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **changed)["new"] == 24


def test_published_prompt_sets_are_read(tmp_path):
    rows = [
        {"question_id": "r1", "category": "地理", "turns": ["一問"]},
        {"question_id": 7, "turns": ["一問", "二問"]},
        {"input_text": "課題", "output_text": "見本", "eval_aspect": "観点"},
    ]
    requests.write_jsonl(tmp_path / "p.jsonl", rows)
    got = requests.read_prompts(tmp_path / "p.jsonl")
    assert [p["id"] for p in got] == ["r1", "7", "3"]
    assert [p["contents"] for p in got] == [["一問"], ["一問"], ["課題"]]
    assert [p.get("turns") for p in got] == [None, ["一問", "二問"], None]
    assert requests.at_turn(got[1], []) == {"id": "7", "roles": ["user"], "contents": ["一問"]}
    assert requests.at_turn(got[1], ["一答"]) == {
        "id": "7 turn 2",
        "roles": ["user", "assistant", "user"],
        "contents": ["一問", "一答", "二問"],
    }
    with pytest.raises(errors.DataError, match="JI-GENERATE-001.*2 turns, where one is asked for"):
        requests.prompt_of(rows[1], "p:2")
    for turns in ([], "一問", [1], ["一問", 2]):
        requests.write_jsonl(tmp_path / "p.jsonl", [{"turns": turns}])
        with pytest.raises(errors.DataError, match="JI-GENERATE-00[12]"):
            requests.read_prompts(tmp_path / "p.jsonl")


def test_turns_are_answered_one_after_the_other(monkeypatch, model, tokenizer, sentences, tmp_path):
    prompts = tmp_path / "in.jsonl"
    rows = [{"question_id": n, "turns": [sentences[0], sentences[1]]} for n in range(2)]
    requests.write_jsonl(prompts, [*rows, {"question_id": 9, "turns": [sentences[0]]}])
    run = generate_lib.serving.Run(*model, tokenizer, templates.load("alpaca-ja", tokenizer), 5)
    monkeypatch.setattr(generate_lib.serving, "load_run", lambda *a, **k: run)
    monkeypatch.setattr(generate_lib, "identity", lambda *a: ["m"])
    seen = []
    answer_each = generate_lib.answer_each

    def watched(sampler, todo, degree, batch_rows):
        seen.extend(prompt for prompt, _, _ in todo)
        yield from answer_each(sampler, todo, degree, batch_rows)

    monkeypatch.setattr(generate_lib, "answer_each", watched)
    settings = dict(
        models="m=runs/m", input=str(prompts), answers=2, temperatures=1.0, batch_rows=3, step=None,
        sampling=sampler.SamplingConfig(max_new_tokens=8), weights="params", template="",
    )  # fmt: skip
    whole = generate_lib.generate(output=str(tmp_path / "whole.jsonl"), **settings)
    assert whole["new"] == 10 and whole["answers"] == 6
    written = [json.loads(line) for line in open(tmp_path / "whole.jsonl", encoding="utf-8")]
    assert [len(texts) for texts in written[0]["responses"]] == [2, 2]
    assert all(isinstance(text, str) for text in written[2]["responses"])
    # What stood in front of a second answer is the first one of the same talk.
    second = {(p["id"], p["contents"][1]) for p in seen if len(p["roles"]) == 3}
    log = [
        json.loads(line) for line in open(tmp_path / "whole.jsonl.answers.jsonl", encoding="utf-8")
    ]
    first = {(f"{line['id']} turn 2", line["text"]) for line in log if line["id"] in ("0", "1")}
    assert len(second) == 4 and second == first
    told = {(f"{row['id']} turn 2", texts[0]) for row in written[:2] for texts in row["responses"]}
    assert {(k, text.strip()) for k, text in second} == told
    # Cut within the second turn, it goes on to the same file.
    lines = (tmp_path / "whole.jsonl.answers.jsonl").read_bytes().split(b"\n")
    (tmp_path / "cut.jsonl.answers.jsonl").write_bytes(b"\n".join(lines[:8]) + b"\n")
    assert generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **settings)["new"] == 2
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_models_and_temperatures_are_parsed_or_refused():
    assert generate_lib.parse_models("a=r/1, r/2") == [("a", "r/1"), ("r/2", "r/2")]
    assert generate_lib.parse_temperatures("0,0.7") == [0.0, 0.7]
    assert generate_lib.parse_temperatures(0.7) == [0.7]
    assert generate_lib.parse_temperatures((0.7, 1)) == [0.7, 1.0]
    for wrong in ("", "a=x,a=y"):
        with pytest.raises(errors.ConfigError):
            generate_lib.parse_models(wrong)
    with pytest.raises(errors.ConfigError):
        generate_lib.parse_temperatures("warm")
