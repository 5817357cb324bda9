"""pfgen-bench's scores against its definition written out slowly, and official files that are refused."""

import json
import random

import pytest

from jinstr import errors
from jinstr.data.eval_tasks import benchmarks, pfgen_scores

REFERENCES = [
    "富士山は日本で一番高い山です。標高は3776メートルです。",
    "日本一高い山は富士山で、標高は3,776mです。",
    "富士山です。静岡県と山梨県にまたがります。",
]
KEYWORDS = [
    {"t": "富士山"},
    {"or": [{"t": "3,?776"}, {"and": [{"t": "静岡"}, {"t": "山梨"}]}], "importance": 0.5},
]


def slow_having(references):
    """n-gram → references that have it, n from 1 to 10."""
    return {
        ngram: sum(ngram in reference for reference in references)
        for reference in references
        for n in range(1, 11)
        for ngram in (reference[i : i + n] for i in range(len(reference) - n + 1))
    }


def slow_raw_fluency(having, answer):
    def worth(length):
        part = answer[:length]
        ngrams = {part[i : i + n] for n in range(1, 11) for i in range(length - n + 1)}
        return sum(having.get(ngram, 0) for ngram in ngrams) * (1 - max(length - 100, 0) / 50)

    return max([0.0, *(worth(length) for length in range(1, min(len(answer), 200) + 1))])


def slow_truthfulness(references, having, answer):
    best, last = 0.0, 0.0
    for end in range(1, min(len(answer), 201) + 1):
        if answer[end - 1] in "^$、。・「」『』（）【】［］〈〉《》":
            continue
        read = f"{answer}$"[:201]
        shares = []
        for place, sign in enumerate(answer[:end]):
            if sign not in "^$、。・「」『』（）【】［］〈〉《》":
                around = [read[s : s + 3] for s in range(max(place - 2, 0), place + 1)]
                hits = max(having.get(t, 0) if len(t) == 3 else 0 for t in around)
                shares.append(min(1.0, hits / len(references) * 200))
        last = sum(shares) / len(shares) * (1 - max(end - 100, 0) / 50)
        if end >= 100:
            best = max(best, last)
    return max(best, last)


def some_answers():
    draw = random.Random(0)
    whole = "".join(REFERENCES)
    for length in (1, 2, 3, 12, 40, 99, 100, 101, 130, 149, 160, 199, 200, 201, 230):
        yield "".join(
            draw.choice([whole[k : k + 5], "犬。猫"]) for k in draw.choices(range(60), k=60)
        )[:length]


def test_fluency_and_truthfulness_against_slow_twins():
    own = pfgen_scores.References(REFERENCES)
    having = slow_having(REFERENCES)
    assert own.having == having
    usual = sum(slow_raw_fluency(having, text) for text in REFERENCES) / 3
    for answer in [*REFERENCES, *some_answers()]:
        assert own.fluency(answer) == pytest.approx(slow_raw_fluency(having, answer) / usual)
        assert own.truthfulness(answer) == pytest.approx(
            slow_truthfulness(REFERENCES, having, answer)
        )
    assert sum(map(own.fluency, REFERENCES)) / 3 == pytest.approx(1.0)
    assert own.fluency("") == own.truthfulness("") == 0.0 and own.truthfulness("富士山") == 1.0
    assert own.truthfulness("富士山とエベレスト") < 1.0  # negative control


def test_keywords_by_hand():
    assert pfgen_scores.helpfulness(KEYWORDS, "富士山、3776m") == 1.0
    assert pfgen_scores.helpfulness(KEYWORDS, "富士山。静岡県と山梨県") == 1.0
    assert pfgen_scores.helpfulness(KEYWORDS, "富士山。静岡県") == 0.5
    assert (
        pfgen_scores.helpfulness(KEYWORDS, "エベレスト")
        == pfgen_scores.helpfulness(KEYWORDS, "")
        == 0.0
    )
    late = "富士山" + "あ" * 107 + "3776"  # whole at character 114: worth 1 - 14 / 50
    assert pfgen_scores.helpfulness(KEYWORDS, late) == pytest.approx(0.72)
    assert pfgen_scores.helpfulness(KEYWORDS, "富士山" + "あ" * 140 + "3776") == 0.5


def official(tmp_path, **changes):
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    for number in (1, 2):
        row = {"question_id": f"Q{number:03}", "question": f"日本一高い山は？{number}"}
        row |= {
            "answers": {"PFN": REFERENCES[number:], "RAG": REFERENCES[:number]},
            "keywords": KEYWORDS,
        }
        (folder / f"Q{number:03}.json").write_text(
            json.dumps(row | (changes if number == 2 else {}), ensure_ascii=False), "utf-8"
        )
    return str(folder)


def test_official_files_bring_the_official_scores(tmp_path):
    benchmark, examples = benchmarks.load("pfgen", official(tmp_path))
    assert [example.id for example in examples] == ["Q001", "Q002"] and benchmark.main == "pfgen"
    targets = [example.targets for example in examples]
    score = benchmark.metrics[0]
    texts = ["富士山です。3776mです。", "犬です。"]
    found = score(targets, texts)
    each = score.scores(targets, texts)
    assert found["pfgen"] == pytest.approx(sum(each) / 2) and each[0] > 2 * each[1]
    assert found["pfgen"] == pytest.approx(
        sum(found[name] for name in ("fluency", "truthfulness", "helpfulness")) / 3
    )
    groups = [pfgen_scores.References(REFERENCES[1:]), pfgen_scores.References(REFERENCES[:1])]
    fluency = sum(group.fluency(texts[0]) for group in groups) / 2
    truth = sum(group.truthfulness(texts[0]) for group in groups) / 2
    assert each[0] == pytest.approx((fluency + truth + 1.0) / 3)
    # The order of questions is theirs; a question without references is named.
    assert score(targets[::-1], texts[::-1]) == pytest.approx(found)
    with pytest.raises(errors.DataError, match="JI-EVAL-019.*no reference answers for '犬'"):
        score([("犬",)], ["犬"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"answers": {}}, "answers is no object of groups"),
        ({"answers": {"PFN": []}}, "answers.PFN is no list of texts"),
        ({"keywords": None}, "keywords is no list"),
        ({"keywords": [{"t": "("}]}, r"keyword '\('"),
        ({"keywords": [{"and": []}]}, "has no parts"),
        ({"keywords": [{"name": "x"}]}, "has not one of t, and, or"),
        ({"keywords": [{"t": "x", "importance": "1"}]}, "importance is '1', not a number"),
        ({"question": ""}, "question is '', not text"),
        ({"question_id": "Q001"}, "the id Q001 stands at .*Q001.json too"),
    ],
)
def test_official_files_that_are_wrong(tmp_path, changes, message):
    with pytest.raises(errors.DataError, match=f"Q002.json: .*{message}"):
        benchmarks.load("pfgen", official(tmp_path, **changes))


def test_questions_alone_know_likeness_only(shared_data):
    benchmark, examples = benchmarks.load("pfgen", str(shared_data / "eval/pfgen_questions.jsonl"))
    assert len(examples) == 50 and benchmark.main == "rouge_l_characters"
