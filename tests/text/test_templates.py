"""Templates against the strings that the models were published with, byte for byte."""

import pytest

from jinstr import errors
from jinstr.text import render, templates

A = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
B = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
L = "あなたは誠実で優秀な日本人のアシスタントです。"
ONE = [("user", "問1"), ("assistant", "答1")]
TWO = [*ONE, ("user", "問2"), ("assistant", "答2")]
SYSTEM = [("system", "設"), *ONE]
INPUT = [("user", "問"), ("input", "材料"), ("assistant", "答")]
LINES = [("user", "問\n2行"), ("assistant", "答\n2行")]

CASES = [
    ("alpaca-ja", ONE, A + "\n\n### 指示:\n問1\n\n### 応答:\n|答1</s>"),
    ("alpaca-ja", INPUT, B + "\n\n### 指示:\n問\n\n### 入力:\n材料\n\n### 応答:\n|答</s>"),
    (
        "llm-jp-3",
        TWO,
        f"<s>{A}\n\n### 指示:\n問1\n\n### 応答:\n|答1</s>|\n\n### 指示:\n問2\n\n### 応答:\n|答2</s>",
    ),
    ("llm-jp-3", SYSTEM, "<s>設\n\n### 指示:\n問1\n\n### 応答:\n|答1</s>"),
    ("stablelm-alpha", ONE, B + "\n\n### 指示: \n問1\n\n### 応答: \n|答1</s>"),
    ("weblab", ONE, B + "\n\n### 指示:\n問1\n\n### 応答:\n|答1</s>"),
    (
        "stormy",
        ONE,
        "以下はタスクを説明する指示です。要求を適切に満たすような返答を書いてください。\n\n"
        "###指示: 問1\n###返答:|答1</s>",
    ),
    (
        "rinna",
        TWO,
        "ユーザー: 問1<NL>システム: |答1|<NL>ユーザー: 問2<NL>システム: |答2</s>",
    ),
    ("rinna", LINES, "ユーザー: 問<NL>2行<NL>システム: |答<NL>2行</s>"),
    ("rinna-bilingual", TWO, "ユーザー: 問1\nシステム: |答1|\nユーザー: 問2\nシステム: |答2</s>"),
    ("youri-chat", SYSTEM, "設定: 設\nユーザー: 問1\nシステム: |答1</s>"),
    (
        "llama2",
        TWO,
        f"<s>[INST] <<SYS>>\n{L}\n<</SYS>>\n\n問1 [/INST] |答1 </s>|<s>[INST] 問2 [/INST] |答2 </s>",
    ),
    (
        "chatml",
        SYSTEM,
        "<|im_start|>system\n設<|im_end|>\n<|im_start|>user\n問1<|im_end|>\n<|im_start|>assistant\n"
        "|答1<|im_end|>|\n",
    ),
    (
        "gemma",
        SYSTEM,
        "<s><start_of_turn>user\n設\n\n問1<end_of_turn>\n<start_of_turn>model\n|答1<end_of_turn>|\n",
    ),
    (
        "llama3",
        ONE,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        + L
        + "特に指示が無い場合は、常に日本語で回答してください。<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n問1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n|答1<|eot_id|>",
    ),
]


def conversation(turns):
    return [{"role": role, "content": content} for role, content in turns]


def shown(parts, tokenizer):
    """Parts as one string, a bar where training starts or stops."""
    text, trained = "", False
    for part in render.merged(parts):
        text += "|" * (part.trained != trained)
        text += part.text if part.control < 0 else tokenizer.piece(part.control)
        trained = part.trained
    return text


@pytest.mark.parametrize("name, turns, wanted", CASES)
def test_byte_for_byte(name, turns, wanted, tokenizer):
    template = templates.load(name, tokenizer)
    text = shown(template.parts(conversation(turns)), tokenizer)
    assert text == wanted
    # The prompt is the text up to the last answer.
    prompt = shown(template.parts(conversation(turns[:-1])), tokenizer)
    whole = wanted.replace("|", "")
    answer = turns[-1][1].replace("\n", "<NL>") if name == "rinna" else turns[-1][1]
    assert prompt.replace("|", "") == whole[: whole.rindex(answer)]
    # Negative control.
    other = conversation([*turns[:-1], (turns[-1][0], "別の答")])
    assert shown(template.parts(other), tokenizer) != wanted


def test_every_built_in_template_has_a_case():
    assert {name for name, _, _ in CASES} == set(templates.BUILT_IN)


class Lacking:
    """A tokenizer without the control tokens of chat formats."""

    path, bos_id, eos_id = "plain.model", 1, 2

    @staticmethod
    def id_of(piece):
        return None


@pytest.mark.parametrize("name", ["chatml", "gemma", "llama3", "rinna"])
def test_a_missing_control_token_is_named(name):
    with pytest.raises(errors.ConfigError, match=rf"{name} needs the control token <.*plain.model"):
        templates.load(name, Lacking())


def test_unknown_name(tokenizer):
    with pytest.raises(errors.ConfigError, match="chatnl.*one of alpaca-ja"):
        templates.load("chatnl", tokenizer)


@pytest.mark.parametrize("roles", [["assistant"], ["user", "user"], ["system"], ["user", "system"]])
def test_roles_in_no_usable_order(roles, tokenizer):
    template = templates.load("chatml", tokenizer)
    with pytest.raises(errors.DataError, match="in turn"):
        template.parts([{"role": role, "content": "x"} for role in roles])


def test_rinna_has_no_system_turn(tokenizer):
    with pytest.raises(errors.DataError, match="no place for a system turn"):
        templates.load("rinna", tokenizer).parts(conversation(SYSTEM))
