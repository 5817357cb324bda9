"""A small invented Japanese world whose every fact is known.

Sixty entities of four kinds (towns, people, things made there, festivals) have four or five relations each, and every
relation has a closed set of eight or twelve values. Which entity has which value comes from a fixed hash, so a name says
nothing about its values: whoever answers right has read it. No value is a part of another value of its relation, so a
value can be looked for in a sentence as a plain string. Town names are both entities and values.
"""

import dataclasses
import functools
import hashlib

TOWNS = (
    *("灯ヶ浦", "霧笛町", "鈴鳴村", "琴石島", "苔野町", "帆影港"),
    *("綿雪村", "藍坂町", "貝寄町", "眠り沢", "風待島", "夜鷹峠"),
)
PEOPLE = (
    *("渚木サヨ", "笹貫トキオ", "蕪屋ミチル", "雨竹ゲンタ", "糸巻ナミ", "椋下ヒデ"),
    *("早蕨キヌ", "霞沢ロク", "小鷺ユウ", "栗波タエ", "芹口ダイ", "真砂路ハツ"),
    *("鳴子屋イチ", "葦根コウ", "蔦井モモ", "砥川レン", "桐箱シズ", "丸鍋ケン"),
    *("藻塩アキ", "梅鉢ソラ", "竹馬ノブ", "雪平マツ", "鈴掛ジュン", "蓑虫カイ"),
)
THINGS = (
    *("音なし鈴", "三日月鍋", "ぽくぽく笛", "雲ぼうき", "猫足机", "影絵行灯"),
    *("七つ折り傘", "もやい茶碗", "遠見筒", "くじら凧", "羽音琴", "しずく時計"),
)
FESTIVALS = (
    *("石積み祭", "鳥呼び祭", "傘まわし祭", "霜よけ祭", "豆ころがし祭", "夜舟祭"),
    *("鈴ふり祭", "綿ほどき祭", "影ふみ祭", "水かがみ祭", "泥だんご祭", "風おくり祭"),
)
MONTHS = ("二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月")

ENTITIES = {"town": TOWNS, "person": PEOPLE, "thing": THINGS, "festival": FESTIVALS}

VALUES = {
    "town": {
        "名物": (
            "塩羊羹",
            "干し柿",
            "炭火せんべい",
            "蓮根まんじゅう",
            "昆布飴",
            "木彫りの熊",
            "草木染めの布",
            "竹細工のかご",
        ),
        "場所": (
            "東の海辺",
            "西の山あい",
            "南の岬",
            "北の高原",
            "湖のほとり",
            "盆地のまんなか",
            "大きな河口",
            "森の入り口",
        ),
        "川": ("糸見川", "眠猫川", "白帯川", "三つ瀬川", "飴色川", "鳴石川", "月渡川", "笹舟川"),
        "花": ("山百合", "水仙", "寒椿", "りんどう", "菜の花", "朝顔", "紫陽花", "すみれ"),
        "開かれた年": (
            "1612年",
            "1648年",
            "1695年",
            "1723年",
            "1751年",
            "1786年",
            "1834年",
            "1870年",
        ),
    },
    "person": {
        "仕事": ("大工", "医者", "漁師", "教師", "船頭", "時計職人", "郵便配達", "パン職人"),
        "生まれた町": TOWNS,
        "好物": (
            "焼き芋",
            "冷や奴",
            "栗ごはん",
            "味噌田楽",
            "卵焼き",
            "豆大福",
            "かぼちゃの煮物",
            "いわしの酢漬け",
        ),
        "動物": ("三毛猫", "柴犬", "石亀", "子山羊", "文鳥", "金魚", "白うさぎ", "にわとり"),
        "誕生月": MONTHS,
    },
    "thing": {
        "色": ("朱色", "藍色", "若草色", "山吹色", "墨色", "桜色", "乳白色", "銀色"),
        "材料": ("杉の木", "真竹", "和紙", "銅板", "麻糸", "貝殻", "粘土", "鹿革"),
        "産地": TOWNS,
        "値段": ("三百円", "四百円", "六百円", "八百円", "千五百円", "二千円", "三千円", "五千円"),
    },
    "festival": {
        "開かれる月": MONTHS,
        "開かれる町": TOWNS,
        "踊り": (
            "輪踊り",
            "鷺の舞",
            "獅子舞",
            "棒踊り",
            "面踊り",
            "扇の舞",
            "早足踊り",
            "太鼓踊り",
        ),
        "供え物": ("赤飯", "甘酒", "稲穂", "丸餅", "塩鮭", "夏みかん", "新茶", "蜂蜜"),
    },
}

HELD_OUT_SHARE = 1 / 6
"""Share of the entities of each kind that no instruction row speaks of; the prose tells their facts all the same."""


@dataclasses.dataclass(frozen=True)
class Fact:
    """One true statement: the `relation` of `entity` is `value`."""

    entity: str
    kind: str
    relation: str
    value: str


def stable_hash(*parts: str) -> int:
    """A number in [0, 2**64) that depends on the parts alone, on every machine and Python."""
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode("utf-8")).digest()[:8], "big")


@functools.cache
def facts() -> tuple[Fact, ...]:
    """All facts, by kind, entity and relation in the order of the tables.

    The values of a relation are dealt out in turn to its entities in hash order: each value is as frequent as any
    other, give or take one, and always answering the commonest value gains nothing.
    """
    dealt = {}
    for kind, relations in VALUES.items():
        for relation, choices in relations.items():
            order = sorted(ENTITIES[kind], key=lambda name: stable_hash("deal", relation, name))
            start = stable_hash("start", relation)
            for place, entity in enumerate(order):
                dealt[entity, relation] = choices[(start + place) % len(choices)]
    return tuple(
        Fact(entity, kind, relation, dealt[entity, relation])
        for kind, entities in ENTITIES.items()
        for entity in entities
        for relation in VALUES[kind]
    )


def facts_of(entity: str) -> tuple[Fact, ...]:
    """The facts about one entity, in the order of its relations."""
    return tuple(fact for fact in facts() if fact.entity == entity)


def values(relation: str) -> tuple[str, ...]:
    """The closed set of values of a relation. Raises KeyError for an unknown relation."""
    for relations in VALUES.values():
        if relation in relations:
            return relations[relation]
    raise KeyError(relation)


@functools.cache
def held_out_entities() -> frozenset[str]:
    """The first entities of each kind in the order of their hashes."""
    chosen: list[str] = []
    for names in ENTITIES.values():
        order = sorted(names, key=lambda name: stable_hash("hold out", name))
        chosen += order[: round(HELD_OUT_SHARE * len(names))]
    return frozenset(chosen)


def held_out(fact: Fact) -> bool:
    """Whether the fact is kept out of the instruction data: nothing is asked there about its entity."""
    return fact.entity in held_out_entities()
