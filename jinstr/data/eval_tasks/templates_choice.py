"""Several ways to ask where one of several answers is right. The first of each is llm-jp-eval's layout.

Layouts (where question, choices and answer stand, and with which signs) are those of llm-jp-eval and of the JP LM
evaluation harness (its versions 0.1 "brackets", 0.2 and 0.2.1 "bullets"); the words are jinstr's own.
"""

from __future__ import annotations

from jinstr.data.eval_tasks.benchmark import Template

_DIGITS = tuple("0123456789")
_LETTERS = tuple("ABCDEFGHIJ")
_KANA = tuple("アイウエオカキクケコ")

_CHOICE_DIGITS = Template(
    name="digits",
    instruction="質問に最もふさわしい答えを選択肢から一つ選び、その番号だけを書いてください。",
    question="質問：{question}\n選択肢：{choices}",
    lead="回答：",
    labels=_DIGITS,
)
_CHOICE_LETTERS = Template(
    name="letters",
    instruction="次の問いの正しい答えを選び、記号だけで答えてください。",
    question="質問：{question}\n選択肢：{choices}",
    lead="回答：",
    labels=_LETTERS,
)
_CHOICE_BRACKETS = Template(
    name="brackets",
    instruction="[選択肢]のうち[問題]の[答え]になるものを書いてください。",
    question="[問題]:{question}\n[選択肢]:[{choices}]",
    lead="[答え]:",
    choice="{text}",
    between=", ",
)
_CHOICE_BULLETS = Template(
    name="bullets",
    instruction="選択肢の中から、質問の答えとして最も適切なものを一つ書いてください。",
    question="質問：{question}\n選択肢：\n{choices}",
    lead="回答：",
    choice="- {text}",
    between="\n",
)
_CHOICE_KANA = Template(
    name="kana",
    instruction="次の問題を読み、正しいものの記号を一つ答えなさい。",
    question="問　{question}\n{choices}",
    lead="答　",
    choice="{label}　{text}",
    between="\n",
    labels=_KANA,
)
JCOMMONSENSEQA = (
    _CHOICE_DIGITS,
    _CHOICE_LETTERS,
    _CHOICE_BRACKETS,
    _CHOICE_BULLETS,
    _CHOICE_KANA,
)
JMMLU = (_CHOICE_LETTERS, _CHOICE_DIGITS, _CHOICE_BRACKETS, _CHOICE_BULLETS, _CHOICE_KANA)

JNLI = (
    Template(
        name="english",
        instruction="前提が真であるとき仮説がどうなるかを、entailment（必ず真）、contradiction（必ず偽）、"
        "neutral（どちらとも言えない）のどれか一語で答えてください。",
        question="前提：{premise}\n仮説：{hypothesis}",
        lead="関係：",
    ),
    Template(
        name="japanese",
        instruction="前提と仮説の関係は、含意・矛盾・中立のうちどれですか。一語で答えてください。",
        question="前提：{premise}\n仮説：{hypothesis}",
        lead="関係：",
        labels=("含意", "矛盾", "中立"),
    ),
    Template(
        name="digits",
        instruction="二つの文の関係を選択肢から選び、番号だけを書いてください。",
        question="文1：{premise}\n文2：{hypothesis}\n"
        "選択肢：0.文1から文2が導かれる,1.文1と文2は両立しない,2.どちらとも言えない",
        lead="回答：",
        labels=("0", "1", "2"),
    ),
    Template(
        name="question",
        question="「{premise}」ということが分かっています。このとき「{hypothesis}」は正しいですか。"
        "はい、いいえ、不明のどれかで答えてください。",
        lead="答え：",
        labels=("はい", "いいえ", "不明"),
    ),
)
OWN_CHOICES = (
    Template(
        name="digits",
        instruction="選択肢から答えを一つ選び、その番号だけを書いてください。",
        question="質問：{input}\n選択肢：{choices}",
        lead="回答：",
        labels=tuple(str(number) for number in range(100)),
    ),
    Template(
        name="bullets",
        instruction="選択肢の中から、最も適切なものを一つ書いてください。",
        question="質問：{input}\n選択肢：\n{choices}",
        lead="回答：",
        choice="- {text}",
        between="\n",
    ),
    Template(name="as_it_is", question="{input}"),
)
