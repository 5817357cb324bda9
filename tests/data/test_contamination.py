"""Questions of benchmarks in training data: what must be found, what must not, against a slow twin."""

import json
import random
import time
import unicodedata

import pytest

from jinstr import errors
from jinstr.data import contamination, ngram_index, sources
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.data.eval_tasks import benchmarks
from jinstr.text import tokenizer as tokenizer_lib

LONG = "日本で一番高い山の名前は何といいますか？"
MIDDLE = "都会の反対は？"
SHORT = "建物は？"


def example(id, **fields):
    return benchmark_lib.Example(id=id, fields=fields, targets=("答",))


def found(documents, *examples):
    """{(id, field): (overlap, share, document, documents)} of documents by name."""
    index = ngram_index.index({"b": examples})
    result = contamination.search(index, {"s": documents.items()})
    return {
        (row["id"], row["field"]): (row["overlap"], row["share"], row["document"], row["documents"])
        for row in result["benchmarks"]["b"]["questions"]
    }


ASKED = (example("l", question=LONG), example("m", question=MIDDLE), example("s", question=SHORT))


@pytest.mark.parametrize(
    "text, ids",
    [
        (LONG, "l"),
        ("日本で、一番高い山の　名前は\n何といいますか", "l"),
        ("前の文。日本で一番高い山の名前は何といいますか。富士山です。", "l"),
        ("ニホンデ一番高い山の名前は何といいますか", "l"),
        ("日本で一番長い川の名前は何でしょうか", ""),
        ("問：都会の反対は?答：田舎", "m"),
        ("「都会の反対は」", "m"),
        ("大都会の反対は？", ""),
        ("都会の反対は田舎です。", ""),
        ("質問：建物は？\n回答：家", "s"),
        ("建物は?", "s"),
        ("建物は？  \r\n", "s"),
        ("「建物は？」と聞いた。", ""),
        ("その建物は？", ""),
        ("建物は", ""),
        ("", ""),
    ],
)
def test_what_is_found(text, ids):
    hits = found({"d": text}, *ASKED)
    assert "".join(id for id, _ in hits) == ids
    assert all(row[2:] == ("d", 1) for row in hits.values())


def test_part_and_whole():
    changed = LONG.replace("一番", "もっとも")
    hits = found({"a": "関係ない文。", "b": changed, "c": LONG, "d": f"これは{LONG}です"}, *ASKED)
    assert hits == {("l", "question"): ("whole", 1.0, "c", 3)}
    hits = found({"b": changed}, *ASKED)
    overlap, share, *_ = hits["l", "question"]
    assert overlap == "part" and 0.5 <= share < 1.0


def test_every_field_by_itself_and_texts_that_several_examples_have():
    passage = "富士山は静岡県と山梨県にまたがる活火山である。"
    both = [
        example(id, context=f"山 [SEP] {passage}", passage=passage, question=q)
        for id, q in (("1", LONG), ("2", MIDDLE))
    ]
    hits = found({"d": passage}, *both)
    assert set(hits) == {("1", "passage"), ("2", "passage")}
    # Nothing runs from one document into the next.
    assert found({"d": passage[:12], "e": passage[12:]}, *both) == {}


def slow(documents, asked):
    """The definition for long texts, written out."""

    def clean(text):
        return "".join(s for s in unicodedata.normalize("NFKC", text).lower() if s.isalnum())

    def grams(text):
        return [text[i : i + ngram_index.N] for i in range(len(text) - ngram_index.N + 1)]

    result = {}
    for one in asked:
        own = grams(clean(one.fields["question"]))
        for name, text in documents.items():
            known = set(grams(clean(text)))
            share = sum(gram in known for gram in own) / len(own)
            if share >= contamination.THRESHOLD:
                best = result.get(one.id, (0.0, "", 0))
                name, most = (name, share) if share > best[0] else (best[1], best[0])
                result[one.id] = (most, name, best[2] + 1)
    return result


def test_against_a_slow_twin(monkeypatch):
    monkeypatch.setattr(ngram_index, "BLOCK", 500)  # many blocks
    draw = random.Random(0)
    signs = "あいう、Ａa。１ \n"
    asked = [
        example(
            str(n), question="いうあ" * 3 + "".join(draw.choices(signs, k=draw.randint(12, 40)))
        )
        for n in range(60)
    ]
    documents = {}
    for number in range(40):
        parts = [draw.choice(asked).fields["question"] for _ in range(draw.randint(1, 4))]
        documents[f"d{number}"] = "".join(
            text[draw.randint(0, 9) : draw.randint(10, 50)] for text in parts
        )
    own = {
        id: (share, name, n) for (id, _), (_, share, name, n) in found(documents, *asked).items()
    }
    twin = {
        id: (round(share, 4), name, n) for id, (share, name, n) in slow(documents, asked).items()
    }
    assert own == twin and 5 < len(own) < 60
    assert any(share < 1 for share, *_ in own.values())


def test_nothing_to_look_for_and_nothing_to_look_in():
    result = contamination.search(ngram_index.index({"b": []}), {"s": [("d", LONG)]})
    assert result["benchmarks"]["b"] == {"examples": 0, "found": {"s": 0}, "questions": []}
    result = contamination.search(ngram_index.index({"b": ASKED}), {"s": []})
    assert result["benchmarks"]["b"]["found"] == {"s": 0}
    assert result["sources"] == {"s": {"documents": 0, "characters": 0}}


def test_the_seven_questions_of_jcommonsenseqa(shared_data):
    """Those that stand in both official files, and all of the valid set in itself."""
    examples = benchmarks.find("jcommonsenseqa").read(
        f"{shared_data}/eval/jcommonsenseqa_valid.json"
    )
    train = shared_data / "sft/jcommonsenseqa_train_3k.json"
    rows = [json.loads(line) for line in train.read_text("utf-8").splitlines()]
    places = {row["question"]: number for number, row in reversed(list(enumerate(rows, 1)))}
    both = {e.id: places[e.fields["question"]] for e in examples if e.fields["question"] in places}
    assert len(both) == 7
    result = contamination.check({"jcommonsenseqa": examples}, {"train": str(train)})
    questions = result["benchmarks"]["jcommonsenseqa"]["questions"]
    whole = {row["id"]: row["document"] for row in questions if row["overlap"] == "whole"}
    assert whole == {id: f"{train.name}:{number}" for id, number in both.items()}
    assert sum(row["overlap"] == "part" for row in questions) < 30
    itself = contamination.check(
        {"jcommonsenseqa": examples}, {"valid": f"{shared_data}/eval/jcommonsenseqa_valid.json"}
    )
    assert itself["benchmarks"]["jcommonsenseqa"]["found"] == {"valid": 1119}


def test_novels_hold_no_questions_and_are_read_fast(shared_data):
    paths = {
        "jcommonsenseqa": "jcommonsenseqa_valid.json",
        "jnli": "jnli_valid.json",
        "jsquad": "jsquad_valid.json",
        "mgsm_ja": "mgsm_ja.tsv",
    }
    sets = {n: benchmarks.find(n).read(f"{shared_data}/eval/{file}") for n, file in paths.items()}
    start = time.process_time()
    seen = []
    result = contamination.check(
        sets, {"novels": f"{shared_data}/corpus/aozora.jsonl"}, progress=seen.append
    )
    assert time.process_time() - start < 15  # 8 MB; 35 MB take 6 s of one core
    assert result["sources"]["novels"]["documents"] == sum(seen) == 452
    assert all(found["found"] == {"novels": 0} for found in result["benchmarks"].values())


def test_prepared_sets_are_decoded(make, tokenizer_path, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"instruction": f"{n}足す{n}は？", "input": "", "output": str(2 * n)} for n in range(60)
    ]
    rows[40]["instruction"], rows[41]["instruction"] = LONG, SHORT
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (made,) = make(sources.SourceConfig(path=str(path), name="facts"))
    tokenizer = tokenizer_lib.load(tokenizer_path)
    result = contamination.check({"b": ASKED}, {"facts": made.path}, tokenizer)
    questions = result["benchmarks"]["b"]["questions"]
    assert [(row["id"], row["overlap"]) for row in questions] == [("l", "whole"), ("s", "whole")]
    assert all(row["document"].startswith("facts:") for row in questions)
    assert result["sources"]["facts"]["documents"] == 60
    with pytest.raises(errors.ConfigError, match="JI-CONTAM-001.*and no tokenizer was given"):
        contamination.check({"b": ASKED}, {"facts": made.path})
