"""Every constraint: its parameters, how it is asked for in Japanese and English, and its measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from jinstr.human import findings, measures, scripts


@dataclasses.dataclass(frozen=True)
class Definition:
    """What a constraint is. In the texts {n} stands for a parameter."""

    parameters: Mapping[str, type]
    label: str  # a few words of Japanese, for annotators
    japanese: tuple[str, ...]  # ways to ask for it
    english: str
    measure: Callable[..., findings.Finding]  # (prepared text, **parameters)


DEFINITIONS: dict[str, Definition] = {
    "characters_at_most": Definition(
        {"n": int},
        "{n}字以内",
        (
            "{n}字以内で書いてください。",
            "文字数は{n}字以内とします。",
            "{n}文字以下でお願いします。",
        ),
        "Write at most {n} characters.",
        findings.number(measures.characters, "字", findings.at_most),
    ),
    "characters_at_least": Definition(
        {"n": int},
        "{n}字以上",
        ("{n}字以上で書いてください。", "少なくとも{n}字は書いてください。"),
        "Write at least {n} characters.",
        findings.number(measures.characters, "字", findings.at_least),
    ),
    "characters_between": Definition(
        {"low": int, "high": int},
        "{low}字以上{high}字以内",
        ("{low}字以上{high}字以内で書いてください。", "文字数は{low}〜{high}字にしてください。"),
        "Write between {low} and {high} characters.",
        findings.number(measures.characters, "字", findings.between),
    ),
    "characters_exactly": Definition(
        {"n": int},
        "ちょうど{n}字",
        (
            "空白と改行を除いて、ちょうど{n}字で書いてください。",
            "文字数がぴったり{n}字になるようにしてください。",
        ),
        "Write exactly {n} characters, not counting spaces and line breaks.",
        findings.number(measures.characters, "字", findings.equals),
    ),
    "sentences_exactly": Definition(
        {"n": int},
        "{n}文",
        ("{n}文で書いてください。", "ちょうど{n}つの文で答えてください。"),
        "Write exactly {n} sentences.",
        findings.number(measures.sentences, "文", findings.equals),
    ),
    "sentences_at_most": Definition(
        {"n": int},
        "{n}文以内",
        ("{n}文以内で書いてください。", "文の数は{n}つまでにしてください。"),
        "Write at most {n} sentences.",
        findings.number(measures.sentences, "文", findings.at_most),
    ),
    "paragraphs_exactly": Definition(
        {"n": int},
        "{n}段落",
        (
            "{n}段落で書いてください。段落の間は1行空けてください。",
            "空行で区切った{n}つの段落にまとめてください。",
        ),
        "Write exactly {n} paragraphs, with a blank line between them.",
        findings.number(measures.paragraphs, "段落", findings.equals),
    ),
    "lines_exactly": Definition(
        {"n": int},
        "{n}行",
        ("{n}行で書いてください。", "空行を数えずに、ちょうど{n}行にしてください。"),
        "Write exactly {n} lines, not counting blank ones.",
        findings.number(measures.lines, "行", findings.equals),
    ),
    "polite_style": Definition(
        {},
        "敬体（です・ます）",
        (
            "です・ます調で書いてください。",
            "敬体で統一してください。",
            "文末は「です」「ます」の丁寧な形にしてください。",
        ),
        "Write in the polite style (desu, masu) throughout.",
        findings.style("polite", "plain"),
    ),
    "plain_style": Definition(
        {},
        "常体（だ・である）",
        (
            "だ・である調で書いてください。",
            "常体で統一してください。",
            "文末に「です」「ます」を使わず、常体で書いてください。",
        ),
        "Write in the plain style (da, de aru) throughout.",
        findings.style("plain", "polite"),
    ),
    "ends_with_question": Definition(
        {},
        "質問で終わる",
        ("最後は質問で終えてください。", "最後の一文を、読み手への問いかけにしてください。"),
        "End with a question.",
        findings.asks,
    ),
    "in_japanese": Definition(
        {},
        "日本語で書く",
        ("日本語で書いてください。", "回答はすべて日本語でお願いします。"),
        "Write in Japanese.",
        findings.in_japanese,
    ),
    "bullets_exactly": Definition(
        {"n": int},
        "箇条書き{n}項目",
        (
            "箇条書きで{n}項目挙げてください。",
            "行頭に「・」を付けた箇条書きを{n}個書いてください。",
        ),
        "Write a bulleted list of exactly {n} items.",
        findings.number(measures.bullets, "項目", findings.equals),
    ),
    "numbered_exactly": Definition(
        {"n": int},
        "番号付きリスト{n}項目",
        (
            "番号付きのリストで{n}項目挙げてください。",
            "1行に1つずつ、番号を付けて{n}個並べてください。",
        ),
        "Write a numbered list of exactly {n} items, one a line.",
        findings.number(measures.numbered, "項目", findings.equals),
    ),
    "headings_exactly": Definition(
        {"n": int},
        "見出し{n}個",
        (
            "見出しを{n}個付けてください。",
            "「■」や「#」で始まる見出しをちょうど{n}個入れてください。",
        ),
        "Use exactly {n} headings.",
        findings.number(measures.headings, "個", findings.equals),
    ),
    "hiragana_only": Definition(
        {},
        "ひらがなのみ",
        (
            "ひらがなだけで書いてください。",
            "漢字、カタカナ、英字、数字を使わず、すべてひらがなで書いてください。",
        ),
        "Write in hiragana only.",
        findings.only(scripts.not_hiragana, "ひらがな"),
    ),
    "katakana_only": Definition(
        {},
        "カタカナのみ",
        ("カタカナだけで書いてください。", "すべての語をカタカナで書いてください。"),
        "Write in katakana only.",
        findings.only(scripts.not_katakana, "カタカナ"),
    ),
    "no_kanji": Definition(
        {},
        "漢字なし",
        ("漢字を使わずに書いてください。", "漢字は一字も使わないでください。"),
        "Do not use any kanji.",
        findings.none_of(scripts.kanji, "漢字"),
    ),
    "no_latin": Definition(
        {},
        "英字なし",
        (
            "アルファベットを使わずに書いてください。",
            "英字は半角も全角も使わないでください。",
        ),
        "Do not use any letters of the Latin alphabet.",
        findings.none_of(scripts.latin, "英字"),
    ),
    "no_digits": Definition(
        {},
        "算用数字なし",
        (
            "算用数字を使わずに書いてください。",
            "0から9の数字は使わず、数は漢数字で書いてください。",
        ),
        "Do not use any Arabic numerals.",
        findings.none_of(scripts.digits, "算用数字"),
    ),
    "half_width_digits": Definition(
        {},
        "数字は半角",
        ("数字は半角で書いてください。", "全角の数字は使わないでください。"),
        "Do not use full-width digits.",
        findings.none_of(scripts.wide_digits, "全角数字"),
    ),
    "no_punctuation": Definition(
        {},
        "句読点なし",
        ("句読点を使わずに書いてください。", "「、」と「。」は使わないでください。"),
        "Do not use commas or full stops.",
        findings.none_of(scripts.punctuation, "句読点"),
    ),
    "no_emoji": Definition(
        {},
        "絵文字なし",
        ("絵文字を使わないでください。", "絵文字なしで書いてください。"),
        "Do not use any emoji.",
        findings.none_of(scripts.emoji, "絵文字"),
    ),
    "contains": Definition(
        {"word": str},
        "{word}を含む",
        ("{word}という語を必ず使ってください。", "文章に{word}を含めてください。"),
        "Use the word {word}.",
        findings.contains,
    ),
    "excludes": Definition(
        {"word": str},
        "{word}を含まない",
        ("{word}という語を使わないでください。", "{word}を使わずに書いてください。"),
        "Do not use the word {word}.",
        findings.excludes,
    ),
    "word_times": Definition(
        {"word": str, "n": int},
        "{word}を{n}回",
        ("{word}という語をちょうど{n}回使ってください。", "文章に{word}を{n}回入れてください。"),
        "Use the word {word} exactly {n} times.",
        findings.word_times,
    ),
    "starts_with": Definition(
        {"start": str},
        "{start}で書き出す",
        ("{start}で書き始めてください。", "書き出しは{start}としてください。"),
        "Begin with {start}.",
        findings.starts_with,
    ),
    "ends_with": Definition(
        {"end": str},
        "{end}で結ぶ",
        ("{end}で締めくくってください。", "文章の最後は{end}としてください。"),
        "End with {end}.",
        findings.ends_with,
    ),
    "enclosed_in_quotes": Definition(
        {},
        "全体を「」で囲む",
        ("回答全体を「」で囲んでください。", "全文をかぎ括弧（「」）に入れてください。"),
        "Put the whole answer between 「 and 」.",
        findings.enclosed,
    ),
    "quotes_exactly": Definition(
        {"n": int},
        "「」{n}組",
        (
            "かぎ括弧「」をちょうど{n}組使ってください。",
            "「」で囲んだ部分を{n}か所入れてください。",
        ),
        "Use exactly {n} pairs of 「 and 」.",
        findings.number(measures.quotations, "組", findings.equals),
    ),
    "json": Definition(
        {},
        "JSON形式",
        (
            "JSON形式だけで答えてください。",
            "回答はJSONとして読み込めるものにし、ほかの文は書かないでください。",
        ),
        "Answer with a JSON object or array and nothing else.",
        findings.json_only,
    ),
    "no_repeated_sentences": Definition(
        {},
        "同じ文を繰り返さない",
        ("同じ文を繰り返さないでください。", "まったく同じ文を二度書かないでください。"),
        "Do not write the same sentence twice.",
        findings.no_repeats,
    ),
}
