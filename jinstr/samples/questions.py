"""Questions about the world, answers that can be checked, and what is kept out of the instruction data.

Three things never occur in `instruction_rows`: the held-out facts (`world.held_out`, all of some entities), two question forms of every
relation, and the sums of the held-out pairs of numbers. `evaluation_rows` asks exactly those. Every reference answer is
a sentence that has the answer in it exactly once, so the sentence of any other candidate is
`row["output"].replace(row["answer"], candidate)`. Chance is one in `len(row["candidates"])`.
"""

import random

from jinstr.samples import prose, world

# {e} is the entity. In each block the first line's forms are taught, the second line's are held out.
FORMS = {
    "名物": """
{e}の名物は何ですか。 {e}の名物を教えてください。 {e}では何が名物ですか。 {e}の名物は？ {e}で知られている名物は何でしょうか。 {e}の名物が知りたいです。
{e}へ行ったら、土産に何を買えばよいですか。 {e}と言えば何が有名ですか。
""",
    "場所": """
{e}はどこにありますか。 {e}の場所を教えてください。 {e}があるのはどこですか。 {e}の場所は？ {e}はどのあたりにあるのでしょうか。 {e}の場所が知りたいです。
{e}へ行くには、どこを目指せばよいですか。 地図で{e}を探すなら、どこを見ればよいですか。
""",
    "川": """
{e}を流れる川は何ですか。 {e}の川の名を教えてください。 {e}には何という川が流れていますか。 {e}の川は？ {e}を流れる川の名は何でしょうか。 {e}の川の名が知りたいです。
{e}の橋の下を流れているのは、どの川ですか。 {e}の子どもが夏に泳ぐ川の名前を言ってください。
""",
    "花": """
{e}の花は何ですか。 {e}の花を教えてください。 {e}では何の花が咲きますか。 {e}の花は？ {e}を代表する花は何でしょうか。 {e}の花が知りたいです。
{e}の旗に描かれているのは、どんな花ですか。 {e}が町の花と決めたものを答えてください。
""",
    "開かれた年": """
{e}が開かれたのは何年ですか。 {e}の開かれた年を教えてください。 {e}はいつ開かれましたか。 {e}の開かれた年は？ {e}は何年に開かれたのでしょうか。 {e}の開かれた年が知りたいです。
{e}の歴史は何年に始まりますか。 {e}の石碑には、何年に開かれたと刻まれていますか。
""",
    "仕事": """
{e}の仕事は何ですか。 {e}の仕事を教えてください。 {e}は何をしている人ですか。 {e}の仕事は？ {e}はどんな仕事をしているのでしょうか。 {e}の仕事が知りたいです。
{e}は何をして暮らしを立てていますか。 {e}の職業を言ってください。
""",
    "生まれた町": """
{e}の生まれた町はどこですか。 {e}の生まれた町を教えてください。 {e}はどこで生まれましたか。 {e}の生まれた町は？ {e}が生まれたのはどこでしょうか。 {e}の生まれた町が知りたいです。
{e}はどこの出身ですか。 {e}のふるさとの名を言ってください。
""",
    "好物": """
{e}の好物は何ですか。 {e}の好物を教えてください。 {e}の好きな食べ物は何ですか。 {e}の好物は？ {e}は何を食べるのが好きでしょうか。 {e}の好物が知りたいです。
{e}を食事に招くなら、何を出せば喜びますか。 {e}の弁当にいつも入っているものは何ですか。
""",
    "動物": """
{e}が飼っている動物は何ですか。 {e}の飼っている動物を教えてください。 {e}は何を飼っていますか。 {e}の飼っている動物は？ {e}の家にいる動物は何でしょうか。 {e}の飼っている動物が知りたいです。
{e}が毎朝餌をやる生き物は何ですか。 {e}はどんなペットと暮らしていますか。
""",
    "誕生月": """
{e}の誕生月は何月ですか。 {e}の誕生月を教えてください。 {e}は何月生まれですか。 {e}の誕生月は？ {e}が生まれたのは何月でしょうか。 {e}の誕生月が知りたいです。
{e}の誕生日を祝うのは何月ですか。 {e}が一つ年を取る月を言ってください。
""",
    "色": """
{e}の色は何ですか。 {e}の色を教えてください。 {e}は何色ですか。 {e}の色は？ {e}はどんな色をしているのでしょうか。 {e}の色が知りたいです。
職人は{e}を何色に仕上げますか。 {e}を絵に描くなら、何色の絵の具を使えばよいですか。
""",
    "材料": """
{e}の材料は何ですか。 {e}の材料を教えてください。 {e}は何で作られていますか。 {e}の材料は？ {e}は何からできているのでしょうか。 {e}の材料が知りたいです。
{e}を作るには、何を用意すればよいですか。 {e}に触れると、何の手ざわりがしますか。
""",
    "産地": """
{e}の産地はどこですか。 {e}の産地を教えてください。 {e}はどこで作られますか。 {e}の産地は？ {e}を作っているのはどこでしょうか。 {e}の産地が知りたいです。
{e}の工房を見学するには、どこへ行けばよいですか。 {e}の箱には、どこの印が押されていますか。
""",
    "値段": """
{e}の値段はいくらですか。 {e}の値段を教えてください。 {e}はいくらで買えますか。 {e}の値段は？ {e}は一ついくらでしょうか。 {e}の値段が知りたいです。
{e}を買うには、お金をどれだけ持っていけばよいですか。 市に出た{e}の札には、いくらと書いてありますか。
""",
    "開かれる月": """
{e}は何月に開かれますか。 {e}の月を教えてください。 {e}が開かれるのは何月ですか。 {e}の月は？ {e}はいつ開かれるのでしょうか。 {e}の開かれる月が知りたいです。
{e}は暦のどの月に書き込まれていますか。 {e}を見たいのですが、何月に行けばよいですか。
""",
    "開かれる町": """
{e}の開かれる町はどこですか。 {e}の開かれる町を教えてください。 {e}はどこで開かれますか。 {e}の開かれる町は？ {e}が開かれるのはどこの町でしょうか。 {e}の開かれる町が知りたいです。
{e}を守ってきたのは、どこの人々ですか。 {e}を見に行くなら、どの町へ向かえばよいですか。
""",
    "踊り": """
{e}の踊りは何ですか。 {e}の踊りを教えてください。 {e}では何が踊られますか。 {e}の踊りは？ {e}に出る踊りは何でしょうか。 {e}の踊りが知りたいです。
{e}の前に、子どもたちは何の稽古をしますか。 {e}の見ものになっている舞は何ですか。
""",
    "供え物": """
{e}の供え物は何ですか。 {e}の供え物を教えてください。 {e}では何を供えますか。 {e}の供え物は？ {e}に供えるものは何でしょうか。 {e}の供え物が知りたいです。
{e}の朝、社には何が置かれますか。 {e}で神様に捧げるものを言ってください。
""",
}

# Two answers in full for every relation; the first is the reference.
ANSWERS = {
    "名物": ("{e}の名物は{v}です。", "{e}の名物として知られるのは{v}です。"),
    "場所": ("{e}は{v}にあります。", "{e}があるのは{v}です。"),
    "川": ("{e}を流れる川は{v}です。", "{e}には{v}という川があります。"),
    "花": ("{e}の花は{v}です。", "{e}を代表する花は{v}です。"),
    "開かれた年": ("{e}が開かれたのは{v}です。", "{e}は{v}に開かれました。"),
    "仕事": ("{e}の仕事は{v}です。", "{e}は{v}をしています。"),
    "生まれた町": ("{e}の生まれた町は{v}です。", "{e}は{v}で生まれました。"),
    "好物": ("{e}の好物は{v}です。", "{e}は{v}が大好きです。"),
    "動物": ("{e}は{v}を飼っています。", "{e}が飼っている動物は{v}です。"),
    "誕生月": ("{e}の誕生月は{v}です。", "{e}は{v}生まれです。"),
    "色": ("{e}の色は{v}です。", "{e}は{v}をしています。"),
    "材料": ("{e}の材料は{v}です。", "{e}は{v}で作られています。"),
    "産地": ("{e}の産地は{v}です。", "{e}は{v}で作られます。"),
    "値段": ("{e}の値段は{v}です。", "{e}は一つ{v}で売られています。"),
    "開かれる月": ("{e}は{v}に開かれます。", "{e}が開かれるのは{v}です。"),
    "開かれる町": ("{e}は{v}で開かれます。", "{e}の開かれる町は{v}です。"),
    "踊り": ("{e}の踊りは{v}です。", "{e}では{v}が踊られます。"),
    "供え物": ("{e}の供え物は{v}です。", "{e}では{v}を供えます。"),
}

HELD_OUT_SUMS = 0.2
LARGEST_TERM = 9
# {a} and {b} are the terms; the second line is held out, like the sums themselves.
SUM_FORMS = """
{a}足す{b}はいくつですか。 {a}と{b}を足すといくつになりますか。 {a}に{b}を足した数を答えてください。
{a}個と{b}個を合わせると、全部で何個ですか。
"""


def _forms(block: str) -> tuple[list[str], list[str]]:
    """(taught, held-out) question forms of a block of two lines."""
    taught, held_out = block.strip().split("\n")
    return taught.split(" "), held_out.split(" ")


def _row(id: str, text: str, output: str, genre: str, purpose: str) -> dict:
    return {"ID": id, "text": text, "output": output, "genre": genre, "purpose": purpose}


def _fact_row(fact: world.Fact, form: str, id: str) -> dict:
    output = ANSWERS[fact.relation][0].format(e=fact.entity, v=fact.value)
    return _row(id, form.format(e=fact.entity), output, "closed_qa", "世界の知識を問う")


def _is_held_out_sum(a: int, b: int) -> bool:
    return world.stable_hash("sum", str(a), str(b)) / 2**64 < HELD_OUT_SUMS


def _sums() -> list[tuple[int, int]]:
    terms = range(1, LARGEST_TERM + 1)
    return [(a, b) for a in terms for b in terms]


def _sum_answer(a: int, b: int) -> str:
    return f"答えは{a + b}です。"


def instruction_rows() -> list[dict]:
    """Questions and answers to tune on: every taught fact in every taught form, and the taught sums."""
    rows = []
    for number, fact in enumerate(world.facts()):
        if world.held_out(fact):
            continue
        for place, form in enumerate(_forms(FORMS[fact.relation])[0]):
            rows.append(_fact_row(fact, form, f"world-{number:03d}-{place}"))
    for a, b in _sums():
        if not _is_held_out_sum(a, b):
            form = _forms(SUM_FORMS)[0][(a + b) % 3]
            answer = _sum_answer(a, b)
            rows.append(_row(f"sum-{a}-{b}", form.format(a=a, b=b), answer, "general_qa", "足し算"))
    return rows


# Names for passages that are about nothing in the world: (beginnings, endings) by kind.
NEW_NAMES = {
    "town": (
        "浅葱 柚原 千歳川 双葉 常磐 月見 杉久保 花里 若松 葛西 谷地 岩清水".split(),
        "町 村 港 島 峠 野".split(),
    ),
    "person": (
        "高遠 藤枝 水野江 有馬 小諸 柳瀬 早乙女 鹿島 里見 宮下 杉原 芦屋".split(),
        "アヤ ジロウ ミナト フミ タケシ ユリ キヨシ トモ".split(),
    ),
    "thing": (
        "朝露 木枯らし 夕凪 花筏 山彦 千鳥 星屑 春霞 霜柱 稲妻 陽炎 狐火".split(),
        "笛 皿 かばん 時計 行灯 椅子 太鼓 箱".split(),
    ),
    "festival": (
        "綱渡り 灯籠 田植え 鯉のぼり 月待ち 虫送り 火渡り 凧揚げ 雪像 茶摘み 稲刈り 星見".split(),
        "祭 の祭り の会 の市".split(),
    ),
}


def reading_rows(count: int = 2000) -> list[dict]:
    """Short passages about made-up names, with a question on one of the facts told.

    No name stands for anything, so the answer can only be read: what is asked for must be told apart from the rest.
    """
    draw, rows = random.Random(0), []
    for number in range(count):
        kind = draw.choice(tuple(NEW_NAMES))
        name = "".join(map(draw.choice, NEW_NAMES[kind]))
        told = draw.sample(tuple(world.VALUES[kind]), draw.randint(2, 4))
        facts = [
            world.Fact(name, kind, relation, draw.choice(world.values(relation)))
            for relation in told
        ]
        polite = draw.random() < 0.5
        passage = "".join(
            prose.inflect(draw.choice(prose.FORM_LISTS[fact.relation]), polite).format(
                e=name, v=fact.value
            )
            for fact in facts
        )
        asked = draw.choice(facts)
        form = draw.choice(_forms(FORMS[asked.relation])[0])
        text = f"「{passage}」{form.format(e=name)}"
        output = ANSWERS[asked.relation][0].format(e=name, v=asked.value)
        rows.append(_row(f"reading-{number:04d}", text, output, "closed_qa", "文章を読んで答える"))
    return rows


def evaluation_rows(name: str) -> list[dict]:
    """Rows of "facts" (held-out facts, taught forms), "paraphrases" (taught facts, held-out forms) or "sums".

    `answer` is the value that a right answer names, `candidates` are the values it is one of.
    """
    rows = []
    if name == "sums":
        for a, b in _sums():
            if _is_held_out_sum(a, b):
                form = _forms(SUM_FORMS)[0][(a + b) % 3]
                row = _row(
                    f"sum-{a}-{b}", form.format(a=a, b=b), _sum_answer(a, b), "general_qa", "足し算"
                )
                sums = [str(n) for n in range(2, 2 * LARGEST_TERM + 1)]
                rows.append(row | {"answer": str(a + b), "candidates": sums})
        return rows
    for number, fact in enumerate(world.facts()):
        taught, held_out = _forms(FORMS[fact.relation])
        if world.held_out(fact) != (name == "facts"):
            continue
        form = (taught if name == "facts" else held_out)[number % 2]
        row = _fact_row(fact, form, f"{name}-{number:03d}")
        rows.append(row | {"answer": fact.value, "candidates": list(world.values(fact.relation))})
    return rows


def practice_rows() -> list[dict]:
    """Questions to practise on by a reward: taught facts in those taught forms that no ranking asks.

    `answer` and `candidates` as in `evaluation_rows`.
    """
    ranked = {row["prompt"] for row in ranking_rows()}
    rows = []
    for number, fact in enumerate(world.facts()):
        if world.held_out(fact):
            continue
        for place, form in enumerate(_forms(FORMS[fact.relation])[0]):
            prompt = form.format(e=fact.entity)
            if prompt not in ranked:
                row = {"id": f"practice-{number:03d}-{place}", "prompt": prompt}
                candidates = list(world.values(fact.relation))
                rows.append(row | {"answer": fact.value, "candidates": candidates})
    return rows


def practice_sum_rows() -> list[dict]:
    """The taught sums in those taught forms that `instruction_rows` does not use; `answer` is the number."""
    rows = []
    for a, b in _sums():
        if _is_held_out_sum(a, b):
            continue
        for place, form in enumerate(_forms(SUM_FORMS)[0]):
            if place != (a + b) % 3:
                row = {"id": f"practice-sum-{a}-{b}-{place}", "prompt": form.format(a=a, b=b)}
                rows.append(row | {"answer": str(a + b)})
    return rows


def _wrong(fact: world.Fact, number: int) -> str:
    """A value of the relation that is not the fact's."""
    others = [value for value in world.values(fact.relation) if value != fact.value]
    return others[world.stable_hash("wrong", fact.entity, fact.relation, str(number)) % len(others)]


def _garbled(one: str, other: str) -> str:
    """The first half of one answer with the second half of another: no sentence."""
    return one[: len(one) // 2] + other[len(other) // 2 :]


def _answers_by_rank(
    fact: world.Fact, number: int, taught: list[world.Fact]
) -> list[tuple[str, int]]:
    """(answer, rank) from best to worst; the kinds change from question to question."""
    full, other = (answer.format(e=fact.entity, v=fact.value) for answer in ANSWERS[fact.relation])
    wrong = ANSWERS[fact.relation][0].format(e=fact.entity, v=_wrong(fact, number))
    # Of another question: right in itself and beside the point.
    far = taught[world.stable_hash("far", str(number)) % len(taught)]
    while far.entity == fact.entity or far.relation == fact.relation:
        far = taught[(taught.index(far) + 1) % len(taught)]
    beside = ANSWERS[far.relation][0].format(e=far.entity, v=far.value)
    near = [f for f in taught if f.entity == fact.entity and f.relation != fact.relation]
    if near:
        told = near[number % len(near)]
        near_by = ANSWERS[told.relation][0].format(e=told.entity, v=told.value)
    kinds = (
        [(full, 1), (f"{fact.entity}についてはよく知りません。", 2), (wrong, 3), (beside, 5)],
        [(full, 1), (other, 1), (f"{fact.value}。", 2), (wrong, 3), (_garbled(full, beside), 6)],
        [(full, 1), (wrong, 3), (near_by, 4) if near else (beside, 5), (_garbled(beside, full), 6)],
    )
    return kinds[number % 3]


def ranking_rows(count: int = 300) -> list[dict]:
    """Prompts with four or five answers: full and right, right and curt, wrong, beside the point, no sentence.

    Two answers that are right and full tie. Without the bad ones a reward model would not know what nobody showed it,
    and practice would end there. Prompts are taught facts only.
    """
    taught = [fact for fact in world.facts() if not world.held_out(fact)]
    rows = []
    for number in range(count):
        fact = taught[number % len(taught)]
        forms = _forms(FORMS[fact.relation])[0]
        form = forms[(number + number // len(taught)) % len(forms)]
        ranked = _answers_by_rank(fact, number, taught)
        order = sorted(
            range(len(ranked)), key=lambda n: world.stable_hash("order", str(number), str(n))
        )
        rows.append(
            {
                "id": f"rank-{number:03d}",
                "prompt": form.format(e=fact.entity),
                "responses": [ranked[n][0] for n in order],
                "ranks": [ranked[n][1] for n in order],
            }
        )
    return rows
