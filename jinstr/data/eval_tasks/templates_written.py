"""Several ways to ask where the answer is written. The first of each is llm-jp-eval's layout.

Layouts (where question, choices and answer stand, and with which signs) are those of llm-jp-eval and of the JP LM
evaluation harness (its versions 0.1 "brackets", 0.2 and 0.2.1 "bullets"); the words are jinstr's own.
"""

from __future__ import annotations

from jinstr.data.eval_tasks.benchmark import Template

JSQUAD = (
    Template(
        name="passage",
        instruction="文章を読み、質問の答えを文章から抜き出して、答えだけを書いてください。",
        question="文章：{context}\n質問：{question}",
        lead="回答：",
    ),
    Template(
        name="brackets",
        instruction="[題名]と[問題]を読み、[質問]の[答え]となる部分を抜き出してください。",
        question="[題名]:{title}\n[問題]:{passage}\n[質問]:{question}",
        lead="[答え]:",
    ),
    Template(
        name="question_first",
        question="{question}\n次の「{title}」についての文章から、答えの語句だけを抜き出してください。\n\n{passage}",
        lead="答え：",
    ),
)
MGSM = (
    Template(
        name="number",
        instruction="算数の問題を解き、答えの数だけを半角の算用数字で書いてください。",
        question="問題：{question}",
        lead="答え：",
    ),
    Template(
        name="steps",
        instruction="問題を順を追って考え、最後に答えの数を書いてください。",
        question="問題：{question}",
        lead="ステップごとの答え：",
    ),
    Template(
        name="question",
        question="{question}\n途中の計算を書き、「答えは」に続けて数を書いてください。",
    ),
)
JSTS = (
    Template(
        name="number",
        instruction="二つの文の意味がどれだけ近いかを、0.0（まったく違う）から5.0（同じ）までの数だけで答えてください。",
        question="文1：{sentence1}\n文2：{sentence2}",
        lead="類似度：",
    ),
    Template(
        name="brackets",
        instruction="[文1]と[文2]の意味の近さを0から5までの数で書いてください。5が最も近く、小数も使えます。",
        question="[文1]:{sentence1}\n[文2]:{sentence2}",
        lead="[近さ]:",
    ),
    Template(
        name="question",
        question="「{sentence1}」と「{sentence2}」は、5点満点で何点くらい意味が似ていますか。"
        "数字だけで答えてください。全く似ていなければ0点です。",
        lead="点数：",
    ),
)
JEMHOPQA = (
    Template(
        name="short",
        instruction="質問に答えてください。書くのは答えだけです。はい・いいえで答える質問には、YESかNOと書いてください。",
        question="質問：{question}",
        lead="回答：",
    ),
    Template(
        name="brackets",
        instruction="[問題]の[答え]だけを書いてください。真偽を問う問題にはYESまたはNOと答えてください。",
        question="[問題]:{question}",
        lead="[答え]:",
    ),
    Template(
        name="question",
        question="{question}\n語句だけで、真偽の問いならYESかNOで答えてください。",
        lead="答え：",
    ),
)
NIILC = (
    Template(
        name="short",
        instruction="質問の答えだけを書いてください。いくつもあるときは半角のコンマ（,）でつないでください。",
        question="質問：{question}",
        lead="回答：",
    ),
    Template(
        name="brackets",
        instruction="[問題]の[答え]を書いてください。複数の答えは,で区切ります。",
        question="[問題]:{question}",
        lead="[答え]:",
    ),
    Template(
        name="question",
        question="{question}\n答えの語句だけを、二つ以上あるなら「,」で並べて書いてください。",
        lead="答え：",
    ),
)
PFGEN = (
    Template(
        name="q_a",
        instruction="例にならって、質問に100字くらいの文章で答えてください。",
        question="Q: {question}",
        lead="A: ",
    ),
    Template(
        name="short",
        instruction="次の質問に、100文字程度で簡潔に答えてください。",
        question="質問：{question}",
        lead="回答：",
    ),
    Template(
        name="question",
        question="{question}\n100字ほどで説明してください。",
    ),
)
OWN = (
    Template(name="as_it_is", question="{input}"),
    Template(name="question", question="質問：{input}", lead="回答："),
    Template(name="brackets", question="[問題]:{input}", lead="[答え]:"),
)
