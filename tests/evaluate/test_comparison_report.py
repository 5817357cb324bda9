"""jinstr compare report: every figure of the page against report.json, published tables, planted effects, bad input."""

import html.parser
import json
import math
import pathlib

import numpy as np
import openpyxl
import pytest

from jinstr import run
from jinstr.evaluate import comparison_report, judge_agreement
from jinstr.human import judgements
from tests.human import judging

NAMES = "alpha", "beta"


def answers(path, texts):
    """texts: (prompt, model) → answer, as jinstr generate writes them."""
    rows = []
    for prompt in dict.fromkeys(prompt for prompt, _ in texts):
        models = [model for at, model in texts if at == prompt]
        rows.append({
            "id": prompt, "roles": ["user"], "contents": [f"質問 {prompt}"],
            "responses": [texts[prompt, model] for model in models], "models": [[m] for m in models],
        })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def made(folder, texts, *words):
    """A study of these answers in folder/s."""
    answers(folder / "answers.jsonl", texts)
    told = ["compare", "make", f"STUDY={folder}/s", f"ANSWERS={folder}/answers.jsonl", *words]
    assert run.main(told) == 0
    return folder / "s"


def reported(study, *words):
    """(report.json, report.html)."""
    assert run.main(["compare", "report", f"STUDY={study}", "SAMPLES=200", *words]) == 0
    facts = json.loads((study / "report.json").read_text("utf-8"))
    return facts, (study / "report.html").read_text("utf-8")


def of_outcomes(outcomes, names=NAMES, rater="rater01"):
    return [
        judgements.Judgement(prompt=j.prompt, rater=rater, left=j.left, right=j.right, verdict=j.verdict)
        for j in judging.of_outcomes(outcomes, *names)
    ]  # fmt: skip


def two_models(folder, outcomes, length=lambda prompt, model: 9):
    """A study of two models with an outcome for each prompt, of one rater."""
    texts = {
        (f"p{n}", model): ("いろ"[m] * 900)[: length(n, m)]
        for n in range(len(outcomes))
        for m, model in enumerate(NAMES)
    }
    study = made(folder, texts)
    judgements.write(study / "judgements.jsonl", of_outcomes(outcomes))
    return study


class Figures(html.parser.HTMLParser):
    """[(pointer, form, text)] of a page."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if "data-key" in named:
            self.open = named["data-key"], named["data-form"]

    def handle_data(self, data):
        if self.open:
            self.found.append((*self.open, data))
            self.open = None


def looked_up(facts, key):
    for part in key.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        facts = facts[int(part)] if isinstance(facts, list) else facts[part]
    return facts


def is_shown(value, form, text):
    """Does `text` stand for `value`, to the last digit shown?"""
    if value is None:
        return text == "—"
    text = text.replace(",", "")
    if form == "p" and text == "< 0.001":
        return value < 0.001
    if text.startswith("over"):
        return value >= float(text.split()[1])
    number, digits = float(text.split()[0]), len(text.split()[0].partition(".")[2])
    scale = 100 if form in ("percent", "percent2", "bare", "points") else 1
    return abs(number - scale * value) <= 0.5 * 10**-digits + 1e-9


def wrong(facts, page):
    return [
        (key, text)
        for key, form, text in Figures(page).found
        if not is_shown(looked_up(facts, key), form, text)
    ]


def shown(page, key):
    return [text for at, _, text in Figures(page).found if at == key]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """(folder of a study of three models by three raters, half filled, with a judge beside it; report.json; page)."""
    folder = tmp_path_factory.mktemp("studied")
    rng = np.random.default_rng(0)
    worth = {"<script>alert(1)</script>": 1.0, "a/b~c $x$": 0.0, "日本": -1.0}
    texts = {
        (f"q{n}", model): f"<b onclick=x()>{n}</b>" + sign * int(rng.integers(5, 90))
        for n in range(24)
        for model, sign in zip(worth, "答回文")
    }
    texts["q0", "日本"] = texts["q0", "a/b~c $x$"]
    study = made(folder, texts, "RATERS=佐藤,鈴木,田中", "OVERLAP=2", "REPEATS=0.2")
    key = json.loads((study / "key/study.json").read_text("utf-8"))
    rows = {row["id"]: row for row in key["rows"]}
    for rater, share in (("佐藤", 1.0), ("鈴木", 0.9), ("田中", 0.3)):
        path = study / "sheets" / f"{rater}.xlsx"
        book = openpyxl.load_workbook(path)
        sheet = book["評価"]
        column = {cell.value: cell.column for cell in sheet[1] if cell.value}
        for number in range(3, 3 + int(share * (sheet.max_row - 2))):
            left, right = rows[sheet.cell(number, column["row_id"]).value]["shown"]
            better = worth[left] - worth[right] + rng.normal(0, 1)
            verdict = "A" if better > 0.4 else "B" if better < -0.4 else "引き分け"
            sheet.cell(number, column["優劣"]).value = verdict
            for axis in judgements.AXES.values():
                for side, model in enumerate((left, right)):
                    score = int(np.clip(round(3 + worth[model] + rng.normal()), 1, 5))
                    sheet.cell(number, column[axis] + side).value = score
            sheet.cell(number, column["Aのコメント"]).value = "<script>alert(2)</script>"
        if rater == "佐藤":
            sheet.cell(4, column["優劣"]).value = "<i>？</i>"
        book.save(path)
    assert run.main(["compare", "read", f"STUDY={study}"]) == 65
    looks, grades = [], []
    for item in key["items"]:
        for left, right in ((a, b) for a in worth for b in worth if a != b):
            better = worth[left] - worth[right] + rng.normal(0, 1)
            verdict = "left" if better > 0.3 else "right" if better < -0.3 else "tie"
            looks.append(judging.judged(item["id"], verdict, "judge:<u>j</u>", left, right))
    for n in range(40):
        grade = 5 if n < 11 else 2 if n < 33 else 3
        grades.append({"prompt": f"AC-{n}", "model": "日本", "rater": "judge:s", "grade": grade})
    for name in ("judged", "safety"):
        (folder / name).mkdir()
    judgements.write(folder / "judged/judgements.jsonl", looks)
    lines = "".join(json.dumps(row) + "\n" for row in grades)
    (folder / "safety/grades.jsonl").write_text(lines, "utf-8")
    summary = {"mode": "safety", "faults": {"timeout": 2}}
    (folder / "safety/summary.json").write_text(json.dumps(summary), "utf-8")
    return study, *reported(study, f"JUDGE={folder}/judged,{folder}/safety")


def test_every_figure_of_the_page_is_in_the_json(studied):
    _, facts, page = studied
    figures = Figures(page).found
    assert len(figures) > 300 and wrong(facts, page) == []
    for part in ("/people/pairs/", "/people/axes/", "/people/raters/", "/judges/0/summary/pairs/"):
        assert any(key.startswith(part) for key, _, _ in figures), part
    # Negative control: figures that moved by a little are seen.
    facts["people"]["pairs"][0]["shares"]["wins"]["interval"][1] += 0.002
    facts["study"]["rows"] += 1
    assert {key for key, _ in wrong(facts, page)} == {
        "/people/pairs/0/shares/wins/interval/1", "/study/rows"
    }  # fmt: skip


def test_a_half_filled_study(studied):
    study, facts, page = studied
    done = len(judgements.read(study / "judgements.jsonl"))
    assert facts["study"]["done"] == done < facts["study"]["rows"]
    assert [fact["late"] for fact in facts["progress"].values()] == [True, False, False]
    assert list(facts["progress"])[0] == "田中" and "late 遅れ" in page
    assert facts["study"]["identical"] == 1 and facts["study"]["overlap"] == 2
    (problem,) = facts["problems"]
    assert problem["cell"].endswith("4") and problem["code"] == "JI-SHEET-004"
    # A prompt counts in the test that may be looked at any time when both its raters have judged it, not before.
    looks = [j for j in judgements.read(study / "judgements.jsonl") if not j.repeat]
    for pair in facts["people"]["pairs"]:
        of = [j.prompt for j in looks if {j.left, j.right} == {pair["model"], pair["other"]}]
        assert (
            pair["sequential"]["prompts"] == sum(of.count(p) == 2 for p in set(of)) < len(set(of))
        )
        assert pair["told"].startswith(("Decided", "Not decided"))
    assert 3 <= len(facts["reading"]) <= 5
    assert facts["disputed"] and all(
        {v["winner"] for v in found["verdicts"]} - {None} == set(found["answers"])
        for found in facts["disputed"]
    )


def test_the_page_escapes_what_people_and_models_wrote(studied):
    _, facts, page = studied
    assert "<script" not in page and "onclick=x()>" not in page.replace("&lt;b onclick=x()&gt;", "")
    assert "&lt;script&gt;alert(1)" in page and "<u>j" not in page and "<i>？" not in page
    assert "&lt;script&gt;alert(2)" in page
    # Self-contained: nothing is fetched.
    assert "src=" not in page and "<link" not in page and "@import" not in page


def test_judges_stand_beside_people(studied):
    study, facts, page = studied
    paired, safety = facts["judges"]
    people = judgements.read(study / "judgements.jsonl")
    looks = judgements.read(study.parent / "judged/judgements.jsonl")
    whole = judge_agreement.agreement(looks, people)
    assert paired["agreement"]["share"] == whole["share"]
    low, high = whole["interval"]
    assert low < whole["share"] < high and paired["agreement"]["looks"] == whole["looks"]
    of_pairs = [pair["agreement"]["looks"] for pair in paired["summary"]["pairs"]]
    assert sum(of_pairs) == whole["looks"] and len(of_pairs) == 3
    assert len(shown(page, "/judges/0/summary/pairs/1/agreement/share")) == 1
    assert "Agreement with people is unknown" not in page
    # Safety: the shares of a table with 11 and 22 of 40.
    assert shown(page, "/judges/1/safety/0/acceptable/share") == ["27.5 %"]
    assert shown(page, "/judges/1/safety/0/violating/high") == ["69.3"]
    assert "許容回答率" in page and "違反回答率" in page and safety["faults"] == {"timeout": 2}


def test_the_table_of_the_talk(tmp_path, capsys):
    """Houou against GPT-3.5 on 40 Rakuda questions, by people: 11 won, 22 lost, 7 ties."""
    outcomes = [1.0] * 11 + [0.0] * 22 + [0.5] * 7
    study = two_models(tmp_path, [outcomes[13 * n % 40] for n in range(40)])
    facts, page = reported(study)
    pair = "/people/pairs/0/"
    for name, figures in (
        ("wins", ["27.5 %", "16.1", "42.8"]), ("losses", ["55.0 %", "39.8", "69.3"]),
        ("ties", ["17.5 %", "8.7", "32.0"]),
    ):  # fmt: skip
        places = ("share", "interval/0", "interval/1")
        assert [shown(page, f"{pair}shares/{name}/{at}")[0] for at in places] == figures
    assert shown(page, pair + "adjusted/rate")[0] == "36.25 %"
    assert shown(page, pair + "sign_test") == ["0.080"]
    needed = facts["people"]["pairs"][0]["power"]["prompts_for_80_percent"]
    assert 85 < needed < 100 and shown(page, pair + "power/prompts_for_80_percent") == [str(needed)]
    told = capsys.readouterr().out
    assert "11 wins 27.5 % (16.1–42.8)" in told and "sign test p = 0.080" in told
    assert "Known: nothing is decided yet." in told and "more judgements" in told


def test_what_was_decided_and_turned_round_is_not_called_known(tmp_path):
    """Eleven wins come first, so that the stake once reaches 20; over all, the other side is ahead."""
    facts, _ = reported(two_models(tmp_path, [1.0] * 11 + [0.0] * 22 + [0.5] * 7))
    (pair,) = facts["people"]["pairs"]
    assert pair["sequential"]["decided_at"] == 11 and pair["told"].startswith("Open again")
    assert facts["reading"][1] == "Known: nothing is decided yet."


def test_the_real_judge(shared_data, tmp_path, capsys):
    """Published games of GPT-4 on calm2 and davinci-003, without people and without a study."""
    path = shared_data / "judge" / "ja_vicuna_pairwise_calm2_vs_davinci003.jsonl"
    facts, page = reported(tmp_path / "s", f"JUDGE={path}")
    (pair,) = facts["judges"][0]["summary"]["pairs"]
    assert (pair["shares"]["wins"]["share"], pair["adjusted"]["rate"]) == (0.7000, 0.7750)
    at = "/judges/0/summary/pairs/0/"
    assert shown(page, at + "shares/wins/share") == ["70.0 %"]
    assert set(shown(page, at + "adjusted/rate")) == {"77.50 %"}
    assert wrong(facts, page) == [] and pair["lengths"]["longer_won"]["count"] == 52
    told = capsys.readouterr().out
    assert "no judgements of people here" in told and "agreement with people unknown" in told
    assert "Agreement with people is unknown" in page


def planted(folder, strength, slope):
    """400 prompts; `alpha` is longer by 60 characters on average."""
    rng = np.random.default_rng(5)
    long = np.clip(rng.normal((260, 200), 60, (400, 2)), 5, 890).astype(int)
    difference = (long[:, 0] - long[:, 1]).astype(float)
    logit = strength + slope * np.tanh(difference / np.sqrt((difference**2).mean()))
    won = (rng.random(400) < 1 / (1 + np.exp(-logit))).astype(float)
    facts, _ = reported(two_models(folder, won, lambda n, m: long[n, m]))
    return facts["people"]["pairs"][0]


def test_a_planted_bias_for_length_is_recovered(tmp_path):
    pair = planted(tmp_path, strength=0.0, slope=2.0)
    found = pair["lengths"]["controlled"]
    assert pair["adjusted"]["by_both"][0] > 0.55  # it looks better,
    assert found["low"] < 0.5 < found["high"] < pair["adjusted"]["rate"]  # and is not
    assert abs(found["slope"] - 2.0) < 2 * found["slope_error"]
    assert pair["lengths"]["longer_won"]["interval"][0] > 0.6
    assert pair["lengths"]["always_longer"] == pytest.approx(
        np.mean([(d > 0) + (d == 0) / 2 for d, _ in pair["lengths"]["points"]])
    )
    # Negative control: a better model whose length nobody looks at keeps its rate.
    (tmp_path / "control").mkdir()
    pair = planted(tmp_path / "control", strength=1.0, slope=0.0)
    found = pair["lengths"]["controlled"]
    assert found["low"] > 0.6 and abs(found["slope"]) < 2 * found["slope_error"]


def test_the_correlation_of_length_and_rate_across_models(tmp_path):
    """Lengths that are a line of the rates: r is 1; turned round, -1."""
    won = {("a", "b"): [1.0] * 6 + [0.0] * 2, ("a", "c"): [1.0] * 8, ("b", "c"): [0.5] * 8}
    rate = {"a": 14 / 16, "b": 6 / 16, "c": 4 / 16}
    for sign, folder in ((1, tmp_path / "up"), (-1, tmp_path / "down")):
        folder.mkdir()
        texts = {(f"p{n}", m): m * int(200 + sign * 160 * rate[m]) for n in range(8) for m in rate}
        study = made(folder, texts)
        rows = [j for names, outcomes in won.items() for j in of_outcomes(outcomes, names)]
        judgements.write(study / "judgements.jsonl", rows)
        facts, page = reported(study)
        found = facts["people"]["lengths"]
        assert {m: f["adjusted"] for m, f in found["models"].items()} == rate
        assert found["correlation"]["characters"] == pytest.approx(sign)
        assert shown(page, "/people/lengths/correlation/characters")[0] == f"{sign:.2f}"


def test_tokens_of_answers(shared_data, tmp_path):
    study = two_models(tmp_path, [1.0, 0.0, 0.5], lambda n, m: 20)
    path = shared_data / "tokenizers" / "code10k_en20k_ja30k.ver2.1.model"
    facts, _ = reported(study, f"TOKENIZER={path}")
    found = facts["people"]["lengths"]["models"]["alpha"]
    assert found["characters"] == 20 and 1 <= found["unique_tokens"] < found["tokens"] <= 21


def test_rankings(tmp_path):
    """A row of a ranking is one row, and gives three judgements."""
    texts = {(f"p{n}", m): f"{m}{n}" for n in range(4) for m in "abc"}
    study = made(tmp_path, texts, "MODE=rank", "RATERS=佐藤,鈴木")
    book = openpyxl.load_workbook(study / "sheets/佐藤.xlsx")
    sheet = book["評価"]
    column = next(c.column for c in sheet[1] if c.value == "順位")
    for number in range(3, sheet.max_row + 1):
        for place in range(3):
            sheet.cell(number, column + place).value = place + 1
    book.save(study / "sheets/佐藤.xlsx")
    assert run.main(["compare", "read", f"STUDY={study}"]) == 0
    facts, page = reported(study)
    assert facts["study"]["done"] == 2 and facts["people"]["judgements"] == 6
    assert facts["progress"]["鈴木"]["to_go"] == 2 and wrong(facts, page) == []


@pytest.mark.parametrize(
    "words, code, status",
    [
        ([], "JI-COMPARE-011", 65),
        (["SAMPLES=9"], "JI-COMPARE-010", 78),
        (["JUDGE=nowhere"], "JI-COMPARE-012", 78),
        (["JUDGE=empty.jsonl"], "JI-COMPARE-013", 65),
        (["JUDGE=games.jsonl"], "JI-COMPARE-014", 65),
    ],
)
def test_what_is_refused(words, code, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made(tmp_path, {("p", "a"): "い", ("p", "b"): "ろ"})
    pathlib.Path("empty.jsonl").write_text("")
    pathlib.Path("games.jsonl").write_text('{"g1_judgment": "[[A]]"}\n')
    assert run.main(["compare", "report", "STUDY=s", *words]) == status
    assert code in capsys.readouterr().err and not pathlib.Path("s/report.html").exists()


def test_judgements_of_another_study_are_refused(tmp_path, capsys):
    study = two_models(tmp_path, [1.0, 0.0])
    judgements.write(study / "judgements.jsonl", of_outcomes([1.0, 0.0, 0.5]))
    assert run.main(["compare", "report", f"STUDY={study}"]) == 65
    told = capsys.readouterr().err
    assert "JI-COMPARE-015" in told and "'p2'" in told


def test_sheets_without_a_verdict_are_no_judgements(tmp_path, capsys):
    study = made(tmp_path, {("p", "a"): "い", ("p", "b"): "ろ"})
    assert run.main(["compare", "read", f"STUDY={study}"]) == 0
    assert run.main(["compare", "report", f"STUDY={study}"]) == 65
    assert "JI-COMPARE-011" in capsys.readouterr().err


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    study = two_models(tmp_path, [1.0, 0.0, 0.5])
    reported(study)
    before = {name: (study / name).read_bytes() for name in ("report.json", "report.html")}
    again, _ = reported(study)
    assert before == {name: (study / name).read_bytes() for name in before}  # nothing of the time

    def fails(facts):
        raise OSError("no space")

    monkeypatch.setattr(comparison_report, "page", fails)
    judgements.write(study / "judgements.jsonl", of_outcomes([1.0, 1.0, 1.0]))
    with pytest.raises(OSError, match="no space"):
        comparison_report.write(study, again | {"name": "other"})
    assert before == {name: (study / name).read_bytes() for name in before}
    assert math.isclose(again["people"]["pairs"][0]["adjusted"]["rate"], 0.5)


def test_sheets_from_elsewhere(tmp_path):
    """Models that always stand on one side: nothing is said of the side."""
    book = openpyxl.Workbook()
    book.active.append(["prompt", "A", "B", "優劣"])
    for n in range(12):
        book.active.append([f"質問{n}", f"答{n}", f"別{n}", "A" if n % 3 else "tie"])
    book.save(tmp_path / "own.xlsx")
    study = tmp_path / "own"
    words = [f"STUDY={study}", f"INPUT={tmp_path}/own.xlsx", "MODELS=A=ours,B=theirs"]
    assert run.main(["compare", "read", *words]) == 0
    facts, page = reported(study)
    assert facts["people"]["pairs"][0]["judgements"] == {"wins": 8, "losses": 0, "ties": 4}
    assert facts["people"]["position"] is None and "cannot be told" in page
    assert "shown as A wins" not in " ".join(facts["reading"]) and wrong(facts, page) == []


def test_a_judge_in_one_order_has_no_win_rate(tmp_path):
    looks = [judging.judged(f"p{n}", "left", "judge:j") for n in range(5)]
    judgements.write(tmp_path / "one.jsonl", looks)
    facts, page = reported(tmp_path / "s", f"JUDGE={tmp_path}/one.jsonl")
    assert facts["judges"][0]["summary"] is None and facts["judges"][0]["looks"] == 5
    assert "no pair that was judged in both orders" in page
    both = looks + [judging.judged(f"p{n}", "right", "judge:j", "b", "a") for n in range(5)]
    judgements.write(tmp_path / "one.jsonl", both)
    facts, page = reported(tmp_path / "s", f"JUDGE={tmp_path}/one.jsonl")
    assert facts["judges"][0]["summary"]["pairs"][0]["adjusted"]["rate"] == 1.0
    assert "The answers' texts are not known here" in page and wrong(facts, page) == []


def test_safety_of_answers_to_a_file_shaped_like_answercarefully(server, tmp_path):
    """Graded by a judge behind a server, reported without a study: 3 acceptable and 4 violating answers of 8."""
    grades = (5, 4, 4, 3, 2, 1, 1, 2)
    prompts, given = tmp_path / "carefully.jsonl", tmp_path / "m.jsonl"
    harm = {"risk-area": "情報", "types-of-harm": "個人情報", "specific-harms": "住所"}
    rows = [
        {"ID": f"AC-{n}", **harm, "text": f"危ない質問{n}", "output": "模範の回答"}
        for n in range(8)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    rows = [{"ID": f"AC-{n}", "output": "答" + "良" * grade} for n, grade in enumerate(grades)]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    server.answer = lambda messages: json.dumps(
        {"reason": "数えた", "grade": messages[-1]["content"].count("良")}
    )
    words = [f"ANSWERS=m={given}", f"PROMPTS={prompts}", "MODE=safety", f"OUT={tmp_path}/judged"]
    assert run.main(["judge", *words, f"URL={server.url}", "MODEL=j", "RETRIES=0"]) == 0
    facts, page = reported(tmp_path / "s", f"JUDGE={tmp_path}/judged")
    (row,) = facts["judges"][0]["safety"]
    assert (row["acceptable"]["count"], row["violating"]["count"], row["count"]) == (3, 4, 8)
    assert shown(page, "/judges/0/safety/0/acceptable/share") == ["37.5 %"]
    assert shown(page, "/judges/0/safety/0/violating/share") == ["50.0 %"]
    assert wrong(facts, page) == [] and '<b class="warn">unknown</b>' in page
