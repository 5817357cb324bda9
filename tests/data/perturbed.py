"""Predictions made from right answers, one rule each: what models do to them. Standard library only."""

import json

SIGNS = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def rules(gold, other):
    """(name, prediction) of every rule. other: the right answer to another question."""
    yield "as it is", gold
    yield "truncated", gold[: max(1, len(gold) // 2)]
    yield "with です", f"{gold}です"
    yield "another's", other
    yield "full width", gold.translate(SIGNS)
    yield "punctuated", f"「{gold}」。"
    yield "spaced", " ".join(gold)
    yield "spaced words", f"  {other} {gold}　{other[:2]} "
    yield "other case", gold.swapcase()
    yield "a sentence and more", f"答えは{gold}です。\n\n質問：{other}は？"
    yield "twice", f"{gold}\n{other}\n{gold}"
    yield "with emoji and tildes", f"♡{gold}〜〜😀 {other}ーー"
    yield "nothing", ""


def spans(shared, count):
    """Accepted answers of the first `count` questions of JSQuAD's validation set."""
    whole = json.loads((shared / "eval/jsquad_valid.json").read_text("utf-8"))
    found = [
        [answer["text"] for answer in qa["answers"]]
        for article in whole["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    return found[:count]


def span_pairs(shared, count):
    """(accepted answers, prediction) of every rule for every question."""
    golds = spans(shared, count)
    return [
        (gold, text)
        for number, gold in enumerate(golds)
        for _, text in rules(gold[0], golds[number - 7][0])
    ]


def labels(shared):
    """(labels of JNLI's validation set, predictions: every third one another's, every eleventh no label)."""
    lines = (shared / "eval/jnli_valid.json").read_text("utf-8").splitlines()
    golds = [json.loads(line)["label"] for line in lines]
    texts = [golds[n - 31] if n % 3 == 0 else gold for n, gold in enumerate(golds)]
    return golds, ["どちらとも" if n % 11 == 0 else text for n, text in enumerate(texts)]


def similarities(shared):
    """(similarities of JSTS's validation set, written predictions: some of another pair, some without a number)."""
    lines = (shared / "eval/jsts_valid.json").read_text("utf-8").splitlines()
    golds = [json.loads(line)["label"] for line in lines]
    forms = ("{}", "{}点", "類似度は{}です", "-{}", "{}です。\n\n文1：3.0", "{}.{}.", "不明")
    texts = [forms[n % len(forms)].format(*[golds[n - n % 3 * 5]] * 2) for n in range(len(golds))]
    texts = [text.translate(SIGNS) if n % 13 == 0 else text for n, text in enumerate(texts)]
    return golds, texts


def number_texts(shared):
    """(right numbers of MGSM-ja, written solutions) in several forms."""
    lines = (shared / "eval/mgsm_ja.tsv").read_text("utf-8").splitlines()
    golds = [line.split("\t")[1] for line in lines]
    forms = (
        "答えは{}です。",
        "{}.",
        "{}.0",
        "2+3=5、つまり{}円",
        "-{}",
        "{}.5",
        "なし",
        "1.{}.3",
        ",",
        "{}、以上",
    )
    return golds, [forms[n % len(forms)].format(gold) for n, gold in enumerate(golds * 4)]
