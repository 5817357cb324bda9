"""What a judge reads: the prompts of the benchmarks' own files, and jinstr's."""

import dataclasses
import json

import pytest

from jinstr import errors
from jinstr.evaluate import judge_prompts, verdicts
from jinstr.human import study

ITEM = study.Item(
    id="q1", roles=("user",), contents=("日本一高い山は？{x}",), answers={"a": ("富士山。",), "b": ("{0}北岳。",)},
    reference="富士山です。", aspect="山の名前が合っているか",
)  # fmt: skip
TALK = study.Item(
    id="q2", roles=("user", "user"), contents=("一つ目", "二つ目"),
    answers={"a": ("答え一", "答え二"), "b": ("別の一", "別の二")},
)  # fmt: skip


def text(prompt, item, **answers):
    return judge_prompts.messages(prompt, item, answers)[-1]["content"]


@pytest.mark.parametrize("mode", judge_prompts.MODES)
def test_own_prompts_show_all_and_ask_for_what_can_be_read(mode):
    (prompt,) = judge_prompts.load("", mode)
    letters = {"a": "a", "b": "b"} if mode == "pairwise" else {"": "a"}
    system, asked = judge_prompts.messages(prompt, ITEM, letters)
    assert system["role"] == "system" and "日本一高い山は？{x}" in asked["content"]
    assert "富士山。" in asked["content"] and ("{0}北岳。" in asked["content"]) == (
        mode == "pairwise"
    )
    assert (prompt.form in verdicts.PAIRWISE) == (mode == "pairwise")
    # The example of the form in the text is a verdict, where there is one; the three of pairs are not.
    reading = verdicts.read(asked["content"], prompt.form)
    assert reading.fault == "several" if mode == "pairwise" else reading.value == 1


def test_sides_go_with_the_letters():
    prompt = judge_prompts.PAIRWISE
    straight, swapped = text(prompt, ITEM, a="a", b="b"), text(prompt, ITEM, a="b", b="a")
    assert straight.index("富士山。") < straight.index("北岳。")
    assert swapped.index("富士山。") > swapped.index("北岳。")


def test_files_of_the_benchmarks(shared_data):
    folder = shared_data / "judge"
    (rakuda,) = judge_prompts.load(str(folder / "rakuda_judge_prompt.jsonl"), "pairwise")
    assert rakuda.form == "rakuda" and rakuda.fields == {"question", "answer_a", "answer_b"}
    vicuna = judge_prompts.load(str(folder / "ja_vicuna_judge_prompts.jsonl"), "pairwise")
    assert [p.name for p in vicuna] == ["pair", "pair-math"]
    single = judge_prompts.load(str(folder / "ja_mt_bench_judge_prompts.jsonl"), "single")
    assert [(p.name, p.form) for p in single] == [
        ("single-v1", "mt-bench"),
        ("single-math-v1", "mt-bench"),
    ]
    (elyza,) = judge_prompts.load(str(folder / "elyza_judge_prompt.txt"), "single")
    assert elyza.fields == {"input_text", "output_text", "eval_aspect", "pred"}
    shown = judge_prompts.messages(elyza, ITEM, {"": "b"})
    assert [m["role"] for m in shown] == ["user"]
    for words in (
        "日本一高い山は？{x}",
        "富士山です。",
        "山の名前が合っているか",
        "{0}北岳。",
        '{"reason": "(',
    ):
        assert words in shown[0]["content"]
    # With a reference the prompt that shows it; without one the other.
    plain = dataclasses.replace(ITEM, reference="")
    assert judge_prompts.choose(vicuna, ITEM).name == "pair-math"
    assert judge_prompts.choose(vicuna, plain).name == "pair"
    with pytest.raises(errors.DataError, match="q1 has no reference"):
        judge_prompts.choose([elyza], plain)
    with pytest.raises(errors.ConfigError, match="none of them is for MODE=single"):
        judge_prompts.load(str(folder / "rakuda_judge_prompt.jsonl"), "single")


def test_turns_of_a_conversation():
    prompt = judge_prompts.Prompt(
        name="two", form="mt-bench", template="{question_1}/{answer_1}/{question_2}/{answer_2}"
    )
    assert text(prompt, TALK, **{"": "b"}) == "一つ目/別の一/二つ目/別の二"
    both = text(judge_prompts.PAIRWISE, TALK, a="a", b="b")
    assert "【質問1】\n一つ目" in both and "【回答2】\n答え二" in both
    with pytest.raises(errors.DataError, match="q1 has nothing for {answer_2} of two"):
        text(prompt, ITEM, **{"": "a"})


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("p.jsonl", {"output_format": "[[A]]", "type": "pairwise", "name": "x", "prompt_template": "{secret}"},
         "{secret}, which nothing fills"),
        ("p.jsonl", {"output_format": "stars", "type": "single", "name": "x", "prompt_template": "{answer}"},
         "'stars'"),
        ("p.jsonl", {"output_format": "[[A]]", "type": "single", "name": "x", "prompt_template": "{answer}"},
         "of type 'single' is not known"),
        ("p.jsonl", {"type": "single"}, "output_format"),
        ("p.txt", "点数を付けてください。", "no field in braces"),
        ("p.txt", "{input_text} {}", "{}, which nothing fills"),
        ("p.txt", "{pred.__class__}", "{pred.__class__}, which nothing fills"),
        ("p.txt", "{input_text} {", "Single '{'"),
    ],
)  # fmt: skip
def test_files_that_are_none(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    with pytest.raises(errors.ConfigError, match="JI-JUDGE-00") as caught:
        judge_prompts.load(str(path), "pairwise" if "secret" in str(content) else "single")
    assert words in str(caught.value)
    with pytest.raises(errors.ConfigError, match="JI-JUDGE-003"):
        judge_prompts.load(str(tmp_path / "none.txt"), "single")
