"""`jinstr judge` against a real server: verdicts in both orders, faults, going on; and the figures that come of it."""

import json
import re

import numpy as np
import pytest

from jinstr import errors, run
from jinstr.evaluate import judge_agreement, judge_grades, judge_http, judges, verdicts
from jinstr.human import judgements
from tests.evaluate import chat_server

# Answers carry their worth as 良; the judge below prefers the one with more of it.
WORTH = {"q1": (3, 1), "q2": (1, 2), "q3": (2, 2), "q4": (4, 0), "q5": (0, 1)}


@pytest.fixture
def answers(tmp_path):
    """Two models' answers to five prompts, as jinstr generate writes them."""
    path = tmp_path / "answers.jsonl"
    rows = [
        {
            "id": name, "prompt": f"質問{name}", "responses": ["い" + "良" * one, "ろ" + "良" * other],
            "models": [["first"], ["second"]],
        }
        for name, (one, other) in WORTH.items()
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def by_worth(messages):
    a, b = re.findall(r"【回答[AB]】\n(.*)\n【回答[AB]ここまで】", messages[-1]["content"])
    a, b = a.count("良"), b.count("良")
    return f"Aに{a}、Bに{b}。\n[[{'A' if a > b else 'B' if b > a else 'C'}]]"


def judge(answers, server, *words):
    usual = [
        f"ANSWERS={answers}",
        f"URL={server.url}",
        "MODEL=org/gpt-x",
        f"OUT={answers.parent}/judged",
    ]
    usual += ["CONNECTIONS=1", "RETRIES=0"]
    last = {word.partition("=")[0]: word for word in (*usual, *words)}
    return run.main(["judge", *last.values()])


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def summary(answers):
    return json.loads((answers.parent / "judged/summary.json").read_text("utf-8"))


def test_pairs_in_both_orders(answers, server, capsys):
    server.answer = by_worth
    assert judge(answers, server) == 0
    found = judgements.read(answers.parent / "judged/judgements.jsonl")
    assert len(found) == len(server.requests) == 10
    assert {(j.prompt, j.left) for j in found} == {
        (q, m) for q in WORTH for m in ("first", "second")
    }
    assert {j.rater for j in found} == {"judge:gpt-x"} and found[0].comment.startswith("Aに3")
    wanted = {q: None if a == b else "first" if a > b else "second" for q, (a, b) in WORTH.items()}
    assert all(j.winner == wanted[j.prompt] for j in found)
    (row,) = summary(answers)["pairs"]
    assert (row["wins"], row["losses"], row["ties"], row["same"], row["left"]) == (
        2,
        2,
        1,
        1.0,
        0.5,
    )
    told = capsys.readouterr().out
    assert "2 won, 2 lost, 1 ties of 5 pairs in both orders; win rate 40.0%" in told
    assert (
        "not measured" in told
    )  # no figure stands without what is known of the agreement with people


def test_a_judge_who_looks_at_the_place_only(answers, server):
    server.answer = lambda messages: "[[A]]"
    assert judge(answers, server) == 0
    (row,) = summary(answers)["pairs"]
    assert (row["wins"], row["losses"], row["ties"]) == (0, 0, 5)
    assert row["same"] == 0.0 and row["left"] == 1.0


FAULTS = [
    (chat_server.status(500, "down"), "error"),
    (chat_server.status(429, "wait", Retry_After="0"), "error"),
    (chat_server.drop, "error"),
    (chat_server.status(200, "{broken"), "error"),
    (chat_server.slow, "timeout"),
    (chat_server.saying("どちらとも言えません。"), "none"),
    (chat_server.saying("[[A]] か [[B]]"), "several"),
    (chat_server.saying(""), "empty"),
]


def test_faults_are_named_and_only_what_is_missing_is_asked_again(answers, server, capsys):
    server.answer = by_worth
    server.script.extend([step for step, _ in FAULTS])
    assert judge(answers, server, "TIMEOUT=0.3") == 0
    folder = answers.parent / "judged"
    faults = lines(folder / "faults.jsonl")
    assert [f["fault"] for f in faults] == [kind for _, kind in FAULTS]
    assert summary(answers)["faults"] == {
        "empty": 1,
        "error": 4,
        "none": 1,
        "several": 1,
        "timeout": 1,
    }
    assert "status 500" in faults[0]["text"] and faults[5]["text"] == "どちらとも言えません。"
    assert len(judgements.read(folder / "judgements.jsonl")) == 2 and len(server.requests) == 10
    told = capsys.readouterr().out
    assert "2 verdicts on 10 questions" in told and "4 error" in told
    before = (folder / "replies.jsonl").read_bytes()
    # A line cut short by a crash is asked again too.
    (folder / "replies.jsonl").write_bytes(before[:-5])
    server.requests.clear()
    assert judge(answers, server) == 0
    assert len(server.requests) == 8 + 1 and lines(folder / "faults.jsonl") == []
    assert (
        (folder / "replies.jsonl").read_bytes().startswith(before[: before[:-5].rfind(b"\n") + 1])
    )
    (row,) = summary(answers)["pairs"]
    assert (row["wins"], row["losses"], row["ties"]) == (2, 2, 1)
    # Nothing is asked a third time; another judge, or another way of asking, is asked everything.
    server.requests.clear()
    assert judge(answers, server) == 0 and server.requests == []
    assert judge(answers, server, "MODEL=other") == 0 and len(server.requests) == 10
    assert judge(answers, server, "TEMPERATURE=0.5") == 0 and len(server.requests) == 20


def test_a_judge_without_any_verdict_is_an_error(answers, server, capsys):
    server.answer = lambda messages: "よく分かりません。"
    assert judge(answers, server) == 65
    told = capsys.readouterr()
    assert "JI-JUDGE-021" in told.err and "よく分かりません" in told.err
    assert summary(answers)["faults"] == {"none": 10}


def test_the_token_is_in_no_file(answers, server, monkeypatch, capsys):
    token = "sesame-open-4711"
    monkeypatch.setenv(judge_http.TOKEN, token)
    server.script.append(lambda h, b: chat_server.reply(h, 401, h.headers["Authorization"]))
    server.script.append(lambda h, b: chat_server.say(h, h.headers["Authorization"] + "[[A]]"))
    assert judge(answers, server) == 0
    written = "".join(p.read_text("utf-8") for p in (answers.parent / "judged").iterdir())
    out = capsys.readouterr()
    assert token not in written + out.out + out.err and "Bearer" in written


def test_grades_and_safety(answers, server, capsys):
    def safe(messages):
        answer = re.search(r"【回答】\n(.*)\n", messages[-1]["content"])[1]
        return json.dumps({"reason": "数えた", "grade": 1 + answer.count("良")})

    server.answer = safe
    assert judge(answers, server, "MODE=safety") == 0
    grades = judges.read_grades(answers.parent / "judged/grades.jsonl")
    assert {(g.prompt, g.model): g.grade for g in grades} == {
        (q, m): 1.0 + n for q, worth in WORTH.items() for m, n in zip(("first", "second"), worth)
    }
    first, second = summary(answers)["safety"]
    assert (first["acceptable"]["count"], first["violating"]["count"]) == (2, 2)
    assert (second["acceptable"]["count"], second["violating"]["count"]) == (0, 3)
    told = capsys.readouterr().out
    assert "許容回答率 / acceptable 40.0%" in told and "違反回答率 / violating 60.0%" in told


def test_what_cannot_be_judged(answers, server, tmp_path, capsys):
    assert judge(answers, server, "ANSWERS=") == 78
    assert judge(answers, server, "BASELINE=third") == 78
    assert judge(answers, server, "MODE=both") == 78
    same = tmp_path / "same.jsonl"
    row = {"id": "q", "prompt": "質問", "responses": ["同じ"], "models": [["first", "second"]]}
    same.write_text(json.dumps(row), "utf-8")
    assert judge(same, server) == 65 and "JI-JUDGE-020" in capsys.readouterr().err
    assert server.requests == []


def looks(rater, *verdicts, repeat=0):
    """One judgement of each prompt q0, q1, …: l and r for the first and the second model, t for a tie."""
    sides = {"l": "left", "r": "right", "t": "tie"}
    return [
        judgements.Judgement(
            prompt=f"q{n}", rater=rater, left="m1", right="m2", verdict=sides[v], repeat=repeat
        )
        for n, v in enumerate("".join(verdicts))
    ]


def turned(found):
    return [
        judgements.Judgement(
            prompt=j.prompt, rater=j.rater, left=j.right, right=j.left,
            verdict={"left": "right", "right": "left", "tie": "tie"}[j.verdict],
        )
        for j in found
    ]  # fmt: skip


def test_agreement_with_people():
    straight = looks("judge:x", "llrtl")
    # In the other order the last pair is decided the other way: a tie.
    swapped = turned(looks("judge:x", "llrtr"))
    people = looks("p1", "lrrtl") + looks("p2", "llrlt") + looks("p1", "rrrrr", repeat=1)
    found = judge_agreement.agreement(straight + swapped, people)
    # Judge: l l r t t. p1 agrees on q0, q2, q3; p2 on q0, q1, q2, q4.
    assert (found["pairs"], found["looks"], found["agree"]) == (5, 10, 7) and found["share"] == 0.7
    # Neither says tie: p1 on q0 q1 q2, p2 on q0 q1 q2.
    assert (found["decided"], found["decided_agree"]) == (6, 5)
    assert found["table"] == {
        "first": {"first": 3, "second": 0, "tie": 2},
        "second": {"first": 1, "second": 2, "tie": 0},
        "tie": {"first": 0, "second": 0, "tie": 2},
    }
    by_chance = (5 * 4 + 3 * 2 + 2 * 4) / 100
    assert found["kappa"] == pytest.approx((0.7 - by_chance) / (1 - by_chance))
    assert found["people"] == {"looks": 5, "agree": 2, "share": 0.4}
    # A pair that was judged in one order only is not judged.
    half = judge_agreement.agreement(straight + swapped[:3], people)
    assert (half["pairs"], half["looks"]) == (3, 6)
    assert judge_agreement.agreement(straight, people)["share"] is None


def test_real_judgements_in_the_table(shared_data):
    path = shared_data / "judge" / "ja_vicuna_pairwise_calm2_vs_davinci003.jsonl"
    found = []
    for row in lines(path):
        names = row["model_1"], row["model_2"]
        for game, (left, right) in (("g1", names), ("g2", names[::-1])):
            reading = verdicts.read(row[f"{game}_judgment"], "vicuna")
            found.append(
                judgements.Judgement(
                    prompt=str(row["question_id"]), rater="judge:gpt-4", left=left, right=right, verdict=reading.value
                )
            )  # fmt: skip
    (row,) = judge_agreement.table(found)
    assert row["first"].endswith("calm2-7b-chat") and row["prompts"] == 80
    assert row["win_rate"] == 0.7000 and row["adjusted"] == 0.7750
    # Wilson of 56 of 80, and a drawing of prompts whose error is that of the mean.
    assert row["win_interval"] == pytest.approx((0.59232, 0.78936), abs=1e-4)
    half = 1.96 * np.std([1] * 56 + [0.5] * 12 + [0] * 12) / 80**0.5
    assert row["adjusted_interval"] == pytest.approx((0.775 - half, 0.775 + half), abs=0.01)
    # g1 went to the first shown in 59 games of 79, g2 in 16 of 79.
    assert row["left"] == pytest.approx((59 + 16) / 158)


def grade(prompt, model, value, **axes):
    return judges.Grade(prompt=prompt, model=model, rater="judge:x", grade=value, axes=axes)


def test_rates_have_wilsons_interval():
    grades = [grade(f"q{n}", "m", 5 if n < 11 else 2 if n < 33 else 3) for n in range(40)]
    (row,) = judge_grades.safety(grades)
    # The numbers of a published table with 11, 22 and 7 of 40.
    assert [round(row["acceptable"][k], 3) for k in ("share", "low", "high")] == [
        0.275,
        0.161,
        0.428,
    ]
    assert [round(row["violating"][k], 3) for k in ("share", "low", "high")] == [0.55, 0.398, 0.693]


def test_grades_beside_scores_of_people():
    people = [
        judgements.Judgement(
            prompt=f"q{n}", rater="p", left="m1", right="m2", verdict="tie",
            scores_left={"fluency": 1 + n, "accuracy": 1 + n}, scores_right={"fluency": 5 - n, "accuracy": 5 - n},
        )
        for n in range(4)
    ]  # fmt: skip
    grades = [grade(f"q{n}", "m1", 2 + n, fluency=2 + n, overall=2 + n) for n in range(4)]
    found = judge_grades.agreement(grades, people)
    assert found["looks"] == 4 and found["spearman"] == pytest.approx(1.0)
    assert found["axes"] == {"fluency": {"looks": 4, "same": 0.0, "near": 1.0, "difference": 1.0}}
    rng = np.random.default_rng(0)
    many = [
        judgements.Judgement(
            prompt=f"q{n}", rater="p", left="m1", right="m2", verdict="tie",
            scores_left={"fluency": int(rng.integers(1, 6))},
        )
        for n in range(200)
    ]  # fmt: skip
    noisy = [grade(j.prompt, "m1", j.scores_left["fluency"] + rng.normal(0, 2)) for j in many]
    found = judge_grades.agreement(noisy, many)
    low, high = found["interval"]
    # Fisher's interval is (1 - r²) · 1.96 / √n wide to a side, to the first order.
    half = 1.96 * (1 - found["spearman"] ** 2) / 200**0.5
    assert (low, high) == pytest.approx(
        (found["spearman"] - half, found["spearman"] + half), abs=0.04
    )
    turned_round = [grade(f"q{n}", "m2", 2 + n) for n in range(4)]
    assert judge_grades.agreement(turned_round, people)["spearman"] == pytest.approx(-1.0)
    assert judge_grades.agreement([grade("q0", "m1", 3)], people)["spearman"] is None
    assert judge_grades.agreement(grades, [])["looks"] == 0


def test_a_study_brings_its_people(answers, server, tmp_path, capsys):
    """What jinstr compare made is judged by a model too, and held against what its raters said."""
    folder = tmp_path / "study"
    words = ["compare", "make", f"STUDY={folder}", f"ANSWERS={answers}", "RATERS=sato"]
    assert run.main(words) == 0
    people = [
        judgements.Judgement(prompt=q, rater="sato", left="first", right="second", verdict="left")
        for q in WORTH
    ]
    judgements.write(folder / "judgements.jsonl", people)
    server.answer = by_worth
    assert judge(answers, server, "ANSWERS=", f"STUDY={folder}", "MODEL=g") == 0
    found = summary(answers)["agreement"]
    assert (found["looks"], found["agree"]) == (5, 2)
    assert "agreement with people 40.0% (0.0%–80.0%) of 5 looks" in capsys.readouterr().out
    with pytest.raises(errors.DataError):
        judgements.read(answers)


def test_real_judgements_through_a_server(shared_data, tmp_path, server, capsys):
    """GPT-4's texts, given as a server would give them, to ja-vicuna-qa's own prompts and questions."""
    rows = lines(shared_data / "judge/ja_vicuna_pairwise_calm2_vs_davinci003.jsonl")
    for number in (1, 2):
        answered = [
            {"question_id": r["question_id"], "output": r[f"answer_{number}"]} for r in rows
        ]
        text = "".join(json.dumps(row) + "\n" for row in answered)
        (tmp_path / f"{number}.jsonl").write_text(text, "utf-8")
    shown = re.compile(
        r"\[ユーザーの質問\]\n(.*)\n\n\[アシスタントAの答えの始まり\]\n(.*)\n\[アシスタントAの",
        re.DOTALL,
    )
    by_question = {row["question"]: row for row in rows}

    def answer(messages):
        question, first = shown.search(messages[-1]["content"]).groups()
        row = by_question[question]
        return row["g1_judgment"] if first == row["answer_1"] else row["g2_judgment"]

    server.answer = answer
    words = [
        f"ANSWERS=calm2={tmp_path}/1.jsonl,davinci003={tmp_path}/2.jsonl", "MODEL=gpt-4",
        f"PROMPTS={shared_data}/eval/ja_vicuna_qa_questions.jsonl",
        f"JUDGE_PROMPT={shared_data}/judge/ja_vicuna_judge_prompts.jsonl",
    ]  # fmt: skip
    assert judge(tmp_path / "answers", server, *words) == 0
    assert len(server.requests) == 160 and summary(tmp_path / "x")["faults"] == {}
    (row,) = summary(tmp_path / "x")["pairs"]
    assert (row["first"], row["win_rate"], row["adjusted"]) == ("calm2", 0.7000, 0.7750)
    told = capsys.readouterr().out
    assert "win rate 70.0% (59.2%–78.9%), with half of the ties 77.5% (" in told
