"""Prose about the world of `world.py`, as much as is asked for, from fixed sentence forms.

Every fact, held-out ones included, is stated about equally often: each document takes the entity that is furthest
behind and the facts about it that were told least. A stated fact always has its entity's name in the same sentence, and
nothing here asks a question about the world, so that questions stay the instruction data's own form.
"""

import random
import re
from collections.abc import Iterator, Sequence

from jinstr.samples import world

# Every form ends with 。; {e} is the entity, {v} the value, [plain|polite] the two styles of ending.
FORMS = {
    "名物": """
{e}の名物は{v}[だ|です]。{e}と言えば、誰もが{v}を思い出[す|します]。
{e}の店先には{v}が並[ぶ|びます]。{e}では昔から{v}を作って[いる|います]。
{e}を訪れた人は、たいてい{v}を土産に買って帰[る|ります]。{e}の名物として知られるのは{v}[である|です]。
{e}の人々は、自分たちの{v}を誇りにして[いる|います]。
駅のない{e}まで、わざわざ{v}を買いに来る客も[いる|います]。{v}は{e}の名物[だ|です]。
{e}の子どもたちも、手伝いをしながら{v}の作り方を覚え[る|ます]。
""",
    "場所": """
{e}は{v}に[ある|あります]。{e}があるのは{v}[だ|です]。{e}は{v}に開けた、静かな土地[である|です]。
地図を広げると、{e}の名は{v}に見つか[る|ります]。{e}へ行くには、{v}まで半日歩[く|きます]。
{e}の家々は{v}に寄り添うように建って[いる|います]。{e}の場所は{v}[だ|です]。
{v}にあるのが{e}[だ|です]。旅の絵描きは、{e}の景色を見に{v}まで出かけ[た|ました]。
""",
    "川": """
{e}を流れる川は{v}[だ|です]。{e}の真ん中を{v}が流れて[いる|います]。
{e}の人は{v}の水で米を研[ぐ|ぎます]。{e}の子どもは、夏になると{v}で泳[ぐ|ぎます]。
{e}には{v}という川が[ある|あります]。雨の続いたあと、{e}では{v}の水が増え[る|ます]。
{e}の橋から{v}をのぞくと、小さな魚が見え[る|ます]。{v}は{e}を流れる川[だ|です]。
{e}の川の名は{v}[である|です]。{e}の洗濯場は{v}の岸に[ある|あります]。
""",
    "花": """
{e}の花は{v}[だ|です]。{e}では、道ばたにも庭にも{v}が咲[く|きます]。
{e}の旗には{v}が描かれて[いる|います]。{e}の人は{v}を町の花と決めて[いる|います]。
{e}に着くと、まず{v}の香りが[する|します]。{e}の役場の前には{v}が植えて[ある|あります]。
{v}は{e}の花[だ|です]。{e}を代表する花は{v}[である|です]。
花の便りによれば、{e}の{v}がそろそろ見ごろ[だ|です]。
""",
    "開かれた年": """
{e}が開かれたのは{v}[だ|です]。{e}は{v}に開かれ[た|ました]。{e}の歴史は{v}に始ま[る|ります]。
石碑には、{e}が{v}に開かれたと刻まれて[いる|います]。{e}に最初の家が建ったのは{v}のこと[だ|です]。
{e}の古い帳面は{v}から書き始められて[いる|います]。{e}の始まりの年は{v}[である|です]。
{v}、{e}が開かれ[た|ました]。{e}では、{v}を町の始まりの年として祝[う|います]。
""",
    "仕事": """
{e}の仕事は{v}[だ|です]。{e}は{v}をして[いる|います]。{e}は毎日{v}として働いて[いる|います]。
{e}は若いころから{v}[だ|です]。{e}が{v}になって、もう十年[だ|になります]。
町の人は、{e}のことを腕のいい{v}だと言[う|います]。{e}は{v}の仕事が気に入って[いる|います]。
{v}の{e}は、今朝も早く起き[た|ました]。{e}は{v}として暮らしを立てて[いる|います]。
父の跡を継いで、{e}は{v}になっ[た|たのです]。
""",
    "生まれた町": """
{e}は{v}で生まれ[た|ました]。{e}の生まれた町は{v}[だ|です]。{e}は{v}の生まれ[だ|です]。
{e}のふるさとは{v}[である|です]。{e}が生まれたのは{v}[だ|です]。
{e}は、生まれた{v}の話をよく[する|します]。{e}は{v}で生まれ、祖母に育てられ[た|ました]。
{v}で生まれた{e}は、今でも訛りが抜け[ない|ません]。
{e}の両親は、{e}が生まれた{v}に今も住んで[いる|います]。
""",
    "好物": """
{e}の好物は{v}[だ|です]。{e}は{v}が大好き[だ|です]。{e}は{v}を見ると、つい笑顔にな[る|ります]。
{e}の好きな食べ物は{v}[である|です]。{e}は疲れた日には必ず{v}を食べ[る|ます]。
{e}は三日続けて{v}でもかまわないと言[う|います]。{e}の弁当には、いつも{v}が入って[いる|います]。
{v}は{e}の好物[だ|です]。誕生日になると、{e}は{v}を腹いっぱい食べ[る|ます]。
{e}が何より好むのは{v}[だ|です]。
""",
    "動物": """
{e}は{v}を飼って[いる|います]。{e}が飼っている動物は{v}[だ|です]。{e}の家には{v}が[いる|います]。
{e}は毎朝、{v}に餌をや[る|ります]。{e}は{v}をわが子のようにかわいがって[いる|います]。
{e}の足もとでは、{v}が眠って[いる|います]。{e}の飼う{v}は、もう六歳にな[る|ります]。
{v}を飼う{e}は、生き物の話が好き[だ|です]。{e}は{v}を連れて散歩に出[る|ます]。
""",
    "誕生月": """
{e}は{v}生まれ[だ|です]。{e}の誕生日は{v}に[ある|あります]。{e}は{v}に生まれ[た|ました]。
{e}が一つ年を取るのは{v}[だ|です]。{e}の誕生月は{v}[である|です]。
毎年{v}になると、家族が{e}の誕生日を祝[う|います]。{e}は自分の生まれた{v}がいちばん好き[だ|です]。
{v}は{e}の誕生月[だ|です]。{e}が生まれたのは、ある年の{v}[だった|でした]。
""",
    "色": """
{e}の色は{v}[だ|です]。{e}は{v}に塗られて[いる|います]。{e}は{v}をして[いる|います]。
{e}の{v}は、遠くからでもよく目立[つ|ちます]。{e}は{v}と決まって[いる|います]。
日に当てると、{e}の{v}がいっそう美し[い|いです]。職人は{e}を{v}に仕上げ[る|ます]。
{v}をしているのが{e}[だ|です]。棚の上で、{e}の{v}が光って[いる|います]。
""",
    "材料": """
{e}の材料は{v}[だ|です]。{e}は{v}で作られて[いる|います]。{e}は{v}からでき[る|ます]。
{e}を作るには、よい{v}が[いる|いります]。{e}の職人は、まず{v}を選ぶことから始め[る|ます]。
{e}には{v}のほか何も使わ[ない|いません]。{v}から作るのが{e}[だ|です]。
{e}に触れると、{v}の手ざわりが[する|します]。{e}は、{v}を丁寧に加工した品[である|です]。
""",
    "産地": """
{e}は{v}で作られ[る|ます]。{e}の産地は{v}[だ|です]。{e}は{v}の職人が作[る|ります]。
{e}を作っているのは{v}だけ[だ|です]。{e}は{v}で生まれた品[である|です]。
{v}の工房では、今日も{e}を作って[いる|います]。{e}の箱には{v}の印が押されて[いる|います]。
{e}は{v}から船や荷車で運ばれて[くる|きます]。{e}が作られるのは{v}[だ|です]。
""",
    "値段": """
{e}の値段は{v}[だ|です]。{e}は一つ{v}で売られて[いる|います]。{e}は{v}[する|します]。
{e}を買うには{v}が[いる|いります]。市に出た{e}には{v}の札が付いて[いた|いました]。
{e}は{v}で買え[る|ます]。{e}一つの値は{v}[である|です]。
小遣いを{v}ためて、{e}を買っ[た|たのです]。店の主人は{e}に{v}の値を付け[た|ました]。
""",
    "開かれる月": """
{e}は{v}に開かれ[る|ます]。{e}の月は{v}[だ|です]。{e}が開かれるのは{v}[だ|です]。
{e}は毎年{v}に行われ[る|ます]。{e}が近づく{v}には、町じゅうが落ち着かなくな[る|ります]。
{v}になると、人々は{e}を祝[う|います]。{e}は{v}の行事[である|です]。
{e}の太鼓が聞こえると、ああ{v}だと思[う|います]。暦を見ると、{e}は{v}に書き込まれて[いる|います]。
""",
    "開かれる町": """
{e}は{v}で開かれ[る|ます]。{e}の開かれる町は{v}[だ|です]。{e}は{v}の祭り[だ|です]。
{e}の夜には、{v}に大勢の客が集ま[る|ります]。{e}を見るには{v}へ行かなければなら[ない|ません]。
{v}では{e}が開かれ[る|ます]。{e}が開かれるのは{v}[だ|です]。
{e}を守ってきたのは{v}の人々[である|です]。{e}の行列は{v}の通りを一回りす[る|るのです]。
""",
    "踊り": """
{e}の踊りは{v}[だ|です]。{e}では{v}が踊られ[る|ます]。{e}の見ものは{v}[である|です]。
{e}の夜、若者たちは{v}を披露[する|します]。{e}に出る踊りは{v}[だ|です]。
{e}に向けて、子どもたちは{v}の稽古を[する|します]。{e}が終わりに近づくと、{v}の輪に客も加わ[る|ります]。
{v}を見たければ、{e}に行くとよ[い|いです]。{e}と言えば{v}[だ|です]。
""",
    "供え物": """
{e}の供え物は{v}[だ|です]。{e}では{v}を供え[る|ます]。{e}の朝、社に{v}が供えられ[る|ます]。
{e}には{v}が欠かせ[ない|ません]。{e}の日には、どの家も{v}を用意[する|します]。
{e}で神様に捧げるのは{v}[である|です]。{v}は{e}の供え物[だ|です]。
{e}が終わると、供えた{v}をみなで分け[る|ます]。
""",
}

# Said of a fact in lists and where one sentence states two facts; other relations go by their own name.
LABELS = {"動物": "飼っている動物"}

# Sentences without facts. {e} is the entity of the document.
FILLERS = {
    "town": """
{e}の朝は、魚売りの声で始ま[る|ります]。{e}の人はよく笑い、よく働[く|きます]。
{e}には宿が二軒しか[ない|ありません]。{e}の空は広く、夜には星がよく見え[る|ます]。
{e}までの道は細く、馬車がやっと通れるほど[だ|です]。{e}を一度訪れた人は、また来たいと口をそろえ[る|ます]。
{e}の冬は長いが、炉を囲む時間は楽し[い|いものです]。{e}の小さな図書室には、古い地図がしまって[ある|あります]。
""",
    "person": """
{e}は物静かだが、話し始めると止まら[ない|なくなります]。{e}を悪く言う人は一人も[いない|いません]。
{e}は字がたいそう上手[だ|です]。{e}の家の窓には、いつも遅くまで灯りがついて[いる|います]。
{e}は雨の日でも傘をささずに歩[く|きます]。{e}は古い歌をたくさん知って[いる|います]。
このところ{e}は少し寝不足らし[い|いです]。{e}に道で会うと、必ず向こうから手を振ってくれ[る|ます]。
""",
    "thing": """
{e}は手入れをすれば孫の代まで使え[る|ます]。{e}を初めて見た人は、たいてい首をかしげ[る|ます]。
{e}の作り方を書いた本は一冊も[ない|ありません]。{e}は祝いの品としても喜ばれ[る|ます]。
{e}を粗末に扱うと、親に叱られ[る|ます]。{e}には持ち主の名を書く決まりが[ある|あります]。
年の暮れには{e}をきれいに拭いてしま[う|います]。
""",
    "festival": """
{e}の日は学校も店も休みにな[る|ります]。{e}の支度には一月ほどかか[る|ります]。
{e}の夜は、子どもも遅くまで起きていて[よい|よいのです]。雨が降っても{e}は取りやめになら[ない|ないのです]。
{e}の由来を知る人は、もう少なくなっ[た|てきました]。{e}のあとの片付けは、みんなでにぎやかに[する|します]。
{e}の笛を吹けるようになるには三年かか[る|ります]。
""",
    "any": """
昔も今も、それは変わら[ない|ません]。覚えておくと、きっと役に立[つ|ちます]。
この話は、土地の年寄りから聞い[た|たものです]。知らない人に話すと、いつも驚かれ[る|ます]。
風の音だけが静かに聞こえて[いた|いました]。急ぐ旅ではないので、ゆっくり歩くことに[した|しました]。
茶を飲みながら聞くには、ちょうどよい話[だ|です]。小さなことのようだが、暮らしには大切なこと[だ|です]。
""",
}

DAYS = "月曜日、晴れ。 火曜日、雨。 水曜日、くもり。 木曜日、風が強い。 金曜日、雪。 土曜日、晴れのちくもり。 日曜日、うすぐもり。".split()
DIARY_ENDS = "今日はここまで。 眠いので、もう寝る。 明日も早い。 よい一日だった。 続きはまた明日書く。".split()
HEADINGS = (
    "【町の便り】 【季節の話題】 【暮らしの欄】 【読者だより】 【地方版】 【小さな旅】".split()
)
GREETINGS = "お元気ですか。 ごぶさたしております。 先日はありがとうございました。 お手紙うれしく読みました。".split()
FAREWELLS = "それでは、また。 お体を大切になさってください。 またお便りします。 お返事をお待ちしています。".split()
SPEAKERS = "祖母 孫 店の主人 旅人 先生 生徒 船乗り 宿の女将 隣の人 記者".split()
REPLIES = (
    "なるほど、覚えておきます。 それは初めて聞きました。 やはりそうでしたか。 いい話ですね。 "
    "うちの父もそう言っていました。 ええ、よく知っています。 教えてくれてありがとう。 帳面に書いておきます。"
).split()
LINKS = ("また、", "そして、", "さらに、", "それに、", "なお、", "ちなみに、", "", "", "", "")
COUNTED = ("", "一つ", "二つ", "三つ", "四つ", "五つ", "六つ", "七つ", "八つ", "九つ", "十")
GOODS = ("桃", "りんご", "卵", "石", "まんじゅう", "鈴", "貝", "椀")

SENTENCE = re.compile(r"[^。\n]+。")
ENDING = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
FORM_LISTS = {relation: SENTENCE.findall(block) for relation, block in FORMS.items()}
FILLER_LISTS = {kind: SENTENCE.findall(block) for kind, block in FILLERS.items()}


def inflect(form: str, polite: bool) -> str:
    """The form with each [plain|polite] pair resolved to one style."""
    return ENDING.sub(lambda pair: pair.group(2 if polite else 1), form)


class _Writer:
    """Draws sentences with one random stream and keeps the count of how often each fact was told."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.told = {fact: 0 for fact in world.facts()}
        self.facts_of = {fact.entity: world.facts_of(fact.entity) for fact in self.told}

    def pick_entity(self, exclude: str = "") -> str:
        """The entity whose facts were told least on average, ties by lot."""

        def behind(entity: str) -> tuple[float, float]:
            own = self.facts_of[entity]
            return sum(self.told[fact] for fact in own) / len(own), self.random.random()

        return min((entity for entity in self.facts_of if entity != exclude), key=behind)

    def pick_facts(self, entity: str, number: int) -> list[world.Fact]:
        """The facts of the entity told least, ties by lot, in random order; they count as told."""
        own = sorted(
            self.facts_of[entity], key=lambda fact: (self.told[fact], self.random.random())
        )[:number]
        for fact in own:
            self.told[fact] += 1
        self.random.shuffle(own)
        return own

    def state(self, fact: world.Fact, polite: bool) -> str:
        form = inflect(self.random.choice(FORM_LISTS[fact.relation]), polite)
        return form.format(e=fact.entity, v=fact.value)

    def state_two(self, first: world.Fact, second: world.Fact, polite: bool) -> str:
        """One sentence with two facts about the same entity."""
        one, two = (LABELS.get(fact.relation, fact.relation) for fact in (first, second))
        form = self.random.choice(
            (
                f"{{e}}の{one}は{{v}}、{two}は{{w}}[だ|です]。",
                f"{{e}}は{one}が{{v}}で、{two}が{{w}}[だ|です]。",
                f"{{e}}と言えば、{one}は{{v}}で、{two}は{{w}}[である|です]。",
            )
        )
        return inflect(form, polite).format(e=first.entity, v=first.value, w=second.value)

    def shuffled(self, items: Sequence[str]) -> list[str]:
        return self.random.sample(items, len(items))

    def sum_sentence(self, polite: bool) -> str:
        """A small addition: counted things up to ten, single digits, or now and then larger."""
        draw = self.random
        if draw.random() < 0.3:
            a = draw.randint(1, 9)
            b = draw.randint(1, 10 - a)
            good, total = draw.choice(GOODS), COUNTED[a + b]
            form = draw.choice(
                (
                    f"{COUNTED[a]}と{COUNTED[b]}で{total}[だ|です]。",
                    f"{good}が{COUNTED[a]}と{COUNTED[b]}、合わせて{total}にな[る|ります]。",
                    f"籠に{good}が{COUNTED[a]}あり、{COUNTED[b]}足すと{total}[だ|です]。",
                )
            )
            return inflect(form, polite)
        a, b = (draw.randint(1, 20 if draw.random() < 0.15 else 9) for _ in range(2))
        form = draw.choice(
            (
                f"{a}と{b}を足すと{a + b}[だ|です]。",
                f"{a}に{b}を足すと{a + b}にな[る|ります]。",
                f"{a}足す{b}は{a + b}[だ|です]。",
                f"{a}と{b}の和は{a + b}[である|です]。",
                f"{a}個と{b}個で、合わせて{a + b}個[だ|です]。",
            )
        )
        return inflect(form, polite)

    def passage(self, entity: str, number: int, polite: bool) -> list[str]:
        """Sentences stating up to `number` facts about the entity, with fillers and links."""
        told = self.pick_facts(entity, number)
        sentences, draw = [], self.random
        fillers = (
            self.shuffled(FILLER_LISTS[told[0].kind])[:3] + self.shuffled(FILLER_LISTS["any"])[:1]
        )
        links = self.shuffled(LINKS)
        while told:
            if len(told) > 1 and draw.random() < 0.15:
                sentence = self.state_two(told.pop(), told.pop(), polite)
            else:
                sentence = self.state(told.pop(), polite)
            sentences.append((links.pop() if sentences else "") + sentence)
            if fillers and draw.random() < 0.25:
                filler = fillers.pop(draw.randrange(len(fillers)))
                sentences.append(inflect(filler, polite).format(e=entity))
        if draw.random() < 0.15:
            sentences.append(self.sum_sentence(polite))
        return sentences

    def article(self) -> str:
        polite = self.random.random() < 0.5
        return "".join(self.passage(self.pick_entity(), self.random.randint(3, 5), polite))

    def pair(self) -> str:
        """Two entities, a paragraph each."""
        polite = self.random.random() < 0.5
        first = self.pick_entity()
        paragraphs = [self.passage(first, 3, polite)]
        paragraphs.append(self.passage(self.pick_entity(exclude=first), 3, polite))
        return "\n".join("".join(paragraph) for paragraph in paragraphs)

    def dialogue(self) -> str:
        """Two speakers tell each other facts; nobody asks."""
        teller, hearer = self.random.sample(SPEAKERS, 2)
        lines = []
        for sentence in self.passage(self.pick_entity(), 4, polite=True):
            lines.append(f"{teller}「{sentence}」")
            if self.random.random() < 0.5:
                lines.append(f"{hearer}「{self.random.choice(REPLIES)}」")
        return "\n".join(lines)

    def diary(self) -> str:
        middle = "".join(self.passage(self.pick_entity(), 4, polite=False))
        choose = self.random.choice
        return f"{choose(DAYS)}{middle}{choose(DIARY_ENDS)}"

    def news(self) -> str:
        entity = self.pick_entity()
        first = "".join(self.passage(entity, 2, polite=False))
        second = "".join(self.passage(entity, 2, polite=False))
        return f"{self.random.choice(HEADINGS)}{entity}\n{first}\n{second}"

    def letter(self) -> str:
        middle = "".join(self.passage(self.pick_entity(), 4, polite=True))
        choose = self.random.choice
        return f"{choose(GREETINGS)}\n{middle}\n{choose(FAREWELLS)}"

    def notes(self) -> str:
        """A list, one fact a line, the entity's name on every line."""
        entity = self.pick_entity()
        lines = [
            f"・{entity}の{LABELS.get(fact.relation, fact.relation)}：{fact.value}"
            for fact in self.pick_facts(entity, 4)
        ]
        return "\n".join([f"{entity}の覚え書き", *lines])

    def reckoning(self) -> str:
        polite = self.random.random() < 0.5
        return "".join(self.sum_sentence(polite) for _ in range(self.random.randint(4, 8)))


def documents(num_bytes: int, seed: int) -> Iterator[str]:
    """Yields documents until their UTF-8 text reaches `num_bytes` (the last may pass it).

    The same arguments give the same documents; a larger `num_bytes` only adds to them.
    """
    writer = _Writer(seed)
    shapes = (
        *((writer.article, 35), (writer.pair, 20), (writer.dialogue, 12), (writer.diary, 9)),
        *((writer.news, 8), (writer.letter, 7), (writer.notes, 4), (writer.reckoning, 5)),
    )
    kinds, weights = zip(*shapes)
    written = 0
    while written < num_bytes:
        text = writer.random.choices(kinds, weights)[0]()
        written += len(text.encode("utf-8"))
        yield text
