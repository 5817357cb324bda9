"""How a Japanese sentence ends: 敬体 (です・ます), 常体 (だ・である), neither; and whether it asks.

Rules on the last characters, no dictionary. What stands inside 「」『』“” does not count, what stands inside （） is
taken away. A sentence that ends with a noun (体言止め), an adverb, a greeting or a te-form is neither.
"""

from __future__ import annotations

import re
import unicodedata

from jinstr.human import measures

_QUOTED = re.compile("「[^「」]*」|『[^『』]*』|“[^“”]*”|｢[^｢｣]*｣")
_ASIDE = re.compile("（[^（）]*）|\\([^()]*\\)|〔[^〔〕]*〕")
_TAIL = 40  # so many characters decide how a sentence ends; a bound on the work, too
# Particles that may follow the verb; each is tried as not being one, too.
_PARTICLE = (
    "か|かしら|ね[えぇ]?|よ|な[あぁ]?|わ|の|のに|ので|が|けど|けれど|けども|けれども|から|し|さ|もの|もん|って|とも|ぞ|ぜ|っけ|や"
    "|い(?<=かい)|と"
)
_PARTICLES = f"(?:{_PARTICLE}){{0,4}}"
_POLITE = re.compile(
    "(?:でー?す|でした|でしょう?|まー?す|まし(?:た|ょう?)|ません|くださ(?:い|いませ|いまし)|下さいま?せ?|下さい"
    f"|(?:なさい|いらっしゃい)ませ){_PARTICLES}$"
)
# The ます of a plain verb: 励ます, 冷ます, だます. The stem of a polite verb ends in a kanji or in い or え of its row.
_NOT_MASU = re.compile(
    "(?:[あかさただなはまやらわがざばうくすつぬふむるぐずぶおこそとのほもよろ励覚冷済澄悩醒騙])ま(?:す|し(?:た|ょ))"
    f"[うか]?{_PARTICLES}$"
)
# Words and endings that look like a plain verb or adjective and are none.
_NEITHER = re.compile(
    "(?:ありがとう|おはよう|おめでとう|ごちそう|ぶどう|おとう|むこう|きのう|とうとう|いっそう|ほう|ふくろう|すもう"
    "|[のいうるなたくむすぶつぬ]よう|(?<!だ)もの|(?<=[はもがをにで])(?:そう|どう|もう|こう|まだ|よく|すぐ|いつ)"
    "|(?<![ぁ-ん一-龯])(?:そう|どう|もう|こう|よう|まだ|ただ|よく|いつ|はる|よる|さる|いぬ|しか|うた|ふた|した|なつ|いす)"
    "|[一二三四五六七八九幾数0-9]つ|いくつ|おやつ|あいさつ|とにかく|しばらく|なるべく|まったく|おそらく|ようやく|ごとく|せっかく"
    "|しく|[高長白黒赤青多少近遠強弱早速重軽甘辛苦古新良深浅広狭太細暑熱寒冷暗明丸硬柔若低短無悪]く|すぐ"
    "|あなた|かなた|あした|ひなた|あひる|かえる|あいだ|くらい|ぐらい|せい|なさい|いらっしゃい|はい|(?<![てで])みたい"
    "|うしろ|おしろ|せかい|きらい|きれい|だいだい|いっぱい|たがい|あい|(?<![っつ])こい|味わい|にぎわい"
    "|[違思願扱伝祝匂勢笑誓戦問狙救使向会合習歌買払拾洗吸占舞迷争呪償賄幸災類誘疑装憩商養賑互従]い)$"
)
_PLAIN = re.compile(
    "(?:だ|である|べし|べからず|じゃん|なの|のか|かも|かな[あぁ]?|ないで|[てで][ねよ]|[うくぐすつぬぶむるいた]"
    "|[しみけてめれべえせねげ見]ろ|[べえけせめれげて]よ|くれ|もん|っけ"
    "|[選並学]べ|[読進飲休挑]め|[示探話直返出記表貸押消]せ|[書行聞解働歩動描導]け|[作走守取送帰入]れ|[急泳]げ|[買歌使言習払思]え)$"
)
_ASKS = re.compile(
    "(?:(?:です|でした|でしょう|ます|ました|ません|ましょう|の|(?<!ど)う|[くぐすぬぶむる]|(?<![いく])つ|ない|なかった|たい|[ばが][いよ]い"
    "|[っいしんえけせて見来出]た|んだ|べき|[はがも](?:どう|だれ|誰|何|なに|なぜ|いつ|どこ))か(?:ね|な[あぁ]?|い|しら)?"
    "|(?:それとも|あるいは|または).+か|(?:です|でした|ます|ました|だ|た)っけ)$"
)


def _without_marks(text: str) -> tuple[str, str]:
    """(text up to its last letter, digit or quotation, the marks after it)."""
    end = len(text)
    while end and not (text[end - 1].isalnum() or text[end - 1] == "〓"):
        end -= 1
    return text[:end], text[end:]


def core(sentence: str) -> str:
    """The end of a sentence without asides, quoted words (〓), marks, laughter (w) and drawn-out vowels."""
    text = _ASIDE.sub("", unicodedata.normalize("NFKC", sentence))
    for _ in range(3):  # quotations inside quotations
        text = _QUOTED.sub("〓", text)
    text = _without_marks(text)[0][-_TAIL:]
    text = _without_marks(re.sub("(?<=[^A-Za-z])w+$", "", text))[0]
    text = re.sub("(?<=[ぁ-ん])[ーぁぃぅぇぉっ]+$", "", text)
    return re.sub(r"\s", "", text)


def _stems(text: str) -> list[str]:
    """`text` and what remains when up to four particles are taken from its end, the longest remainder first."""
    found, last = [text], [text]
    for _ in range(4):
        last = [
            stem[: particle.start()]
            for stem in last
            for particle in re.finditer(f"(?:{_PARTICLE})$", stem)
            if particle.start() > 1
        ]
        found += last
    return sorted(set(found), key=len, reverse=True)


def style(sentence: str) -> str:
    """ "polite", "plain" or "" for one sentence.

    Polite: です ます でした ました ません でしょう ましょう ください, with か ね よ が から and others after them.
    Plain: だ である だった た だろう ない, verbs and adjectives in dictionary form, しろ せよ なの かな てね, likewise.
    励ます 冷ます だます are plain verbs. なさい, はい, ありがとう, nouns such as 違い and 一つ are neither.
    """
    text = core(sentence)
    if _POLITE.search(text) and not _NOT_MASU.search(text):
        return "polite"
    for stem in _stems(text):
        if _NEITHER.search(stem):
            return ""
        if len(stem) > 1 and _PLAIN.search(stem):
            return "plain"
    return ""


def styles(text: str) -> list[tuple[str, str]]:
    """(style, sentence) of every sentence of a text; headings and list items that do not end with a mark are left out.

    Those are labels even in polite text (「・窓を開ける」). Of a text wholly inside 「」 the sentences inside are read.
    """
    found = []
    for line in measures.lines(measures.unwrapped(text)):
        item = bool(measures.list_marker(line))
        ends = re.search("[。｡！？!?．]", _without_marks(line)[1])
        if measures.is_heading(line) or (item and not ends):
            continue
        for sentence in measures.sentences_of_line(measures.without_marker(line)):
            found.append((style(sentence), sentence))
    return found


def asks(sentence: str) -> bool:
    """Whether a sentence is a question: it ends with ？ (also inside a closing 」), or with か after a verb or です.

    Marks, emoji and （笑） after it do not matter; ばか, 静か, いつか, かどうか are no questions; そうですか。 is one.
    """
    text = unicodedata.normalize("NFKC", _ASIDE.sub("", sentence))
    if "?" in _without_marks(text)[1]:
        return True
    return bool(_ASKS.search(core(sentence)))
