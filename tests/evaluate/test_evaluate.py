"""`jinstr evaluate` on a random model: figures against a slow twin, what is kept, what is refused, chance."""

import contextlib
import json

import jax
import numpy as np
import pytest

from jinstr import run
from jinstr.data.eval_tasks import benchmarks
from jinstr.evaluate import results, tasks
from jinstr.models import decoder
from jinstr.train import serving
from tests.evaluate import small_model

WORDS = "海 山 川 空 森 雪 花 月".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model.write(tmp_path_factory.mktemp("evaluate") / "small")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of choices and one of written answers, 12 examples each."""
    folder = tmp_path_factory.mktemp("questions")
    draw = np.random.default_rng(0)
    choices, written = [], []
    for n in range(12):
        three = draw.choice(WORDS, 3, replace=False).tolist()
        asked = f"{n}番目に好きなものは何ですか。"
        choices.append({"input": asked, "choices": three, "label": int(draw.integers(3))})
        written.append({"input": asked, "target": three[0]})
    for name, rows in (("choices", choices), ("written", written)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def evaluate(model, files, out, *words):
    usual = [
        f"MODELS=small={model}",
        f"TASKS=choices={files}/choices.jsonl,written={files}/written.jsonl",
        f"OUTPUT={out}",
        "MAX_NEW_TOKENS=6",
    ]
    last = {word.partition("=")[0]: word for word in (*usual, *words)}
    return run.main(["evaluate", *last.values()])


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def done(model, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "results.jsonl"
    assert evaluate(model, files, out, "SHOTS=0,2") == 0
    return out


def test_choices_are_the_likeliest_of_each_alone(model, files, done):
    """The twin computes every candidate of every question by itself, without packing or shared prompts."""
    opened = serving.load_run(model)
    forward = jax.jit(decoder.forward, static_argnums=0)

    def logp(prompt, candidate):
        ids = np.zeros((1, 512), np.int32)  # one compiled shape
        ids[0, : len(prompt) + len(candidate)] = [*prompt, *candidate]
        places = np.arange(512, dtype=np.int32)[None]
        inside = (places < len(prompt) + len(candidate)).astype(np.int32)
        hidden = forward(opened.config, opened.params, ids, places, inside)
        logits = np.asarray(decoder.logits(opened.config, opened.params, hidden)[0], np.float64)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return sum(logits[len(prompt) + n - 1, token] for n, token in enumerate(candidate))

    (task,) = tasks.parse(f"choices={files}/choices.jsonl", "")
    seen = 0
    for line in lines_of(done):
        if line["task"] != "choices":
            continue
        (job,) = tasks.jobs(task, [line["shots"]], line["template"], 0)
        rows = results.read_predictions(done, line["key"])
        assert len(rows) == line["examples"] == 12 - line["shots"]
        hits = 0
        for example, row in zip(job.examples[:4], rows[:4], strict=True):
            asked = tasks.benchmark_lib.ask(job.template, example, job.worked)
            question = tasks.question(asked, opened.template, opened.tokenizer)
            alone = [logp(question.prompt, candidate) for candidate in question.candidates]
            np.testing.assert_allclose(row["logp"], alone, atol=2e-4)
            assert row["chosen"] == int(np.argmax(alone))
            # Negative control: another prompt is another figure.
            other = logp([*question.prompt[:-3], *question.prompt[-2:]], question.candidates[0])
            assert abs(other - row["logp"][0]) > 1e-3
            hits += row["prediction"] == example.targets[0]
            seen += 1
        assert sum(row["score"] for row in rows[:4]) == hits
    assert seen == 4 * 2 * len(task.benchmark.templates)


def test_figures_follow_from_the_predictions(done):
    for line in lines_of(done):
        rows = results.read_predictions(done, line["key"])
        assert results.recompute(line, rows) == pytest.approx(line["metrics"])
        rows[0]["prediction"] = (
            "" if rows[0]["prediction"] in rows[0]["targets"] else (rows[0]["targets"][0])
        )
        assert results.recompute(line, rows) != pytest.approx(line["metrics"])


def test_what_is_there_is_not_computed_again(model, files, done, monkeypatch, capsys):
    before = done.read_text("utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(serving, "load_run", lambda *_, **__: pytest.fail("a model was read"))
        assert evaluate(model, files, done, "SHOTS=0,2") == 0
    assert done.read_text("utf-8") == before
    assert "written · chat, 2-shot, 10 examples" in capsys.readouterr().out
    # One more number of worked examples: only its figures are added.
    assert evaluate(model, files, done, "SHOTS=1", "TASKS=" + f"choices={files}/choices.jsonl") == 0
    added = lines_of(done)[len(before.splitlines()) :]
    assert {line["shots"] for line in added} == {1} and len({line["group"] for line in added}) == 1


def test_a_stop_halfway_loses_nothing(model, files, done, tmp_path, monkeypatch):
    from jinstr.commands import evaluate as command

    out, count = tmp_path / "r.jsonl", 0
    score = command.scoring_lib.score

    def twice(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(command.scoring_lib, "score", twice)
    with contextlib.suppress(KeyboardInterrupt):
        evaluate(model, files, out)
    assert len(lines_of(out)) == 2
    assert evaluate(model, files, out) == 0
    keys = {line["key"]: line["metrics"] for line in lines_of(out)}
    whole = {line["key"]: line["metrics"] for line in lines_of(done) if not line["shots"]}
    assert keys == whole


def test_a_key_says_what_a_figure_depends_on(model, files, done, tmp_path):
    def keys(*words):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        one = f"TASKS=choices={files}/choices.jsonl"
        template = benchmarks.find("choices").templates[0].name
        assert evaluate(model, files, out, one, f"TASK_TEMPLATES={template}", *words) == 0
        (line,) = lines_of(out)
        return line["key"]

    usual = keys()
    assert usual in {line["key"] for line in lines_of(done)}
    assert keys("BATCH_TOKENS=512") == usual  # how it is computed changes no figure
    others = [keys("FORMAT=plain"), keys("LIMIT=5"), keys("BY=writing"), keys("TEMPLATE=llm-jp-3")]
    assert len({usual, *others}) == 5


def test_the_page_shows_the_file(done):
    page = results.beside(done, ".html").read_text("utf-8")
    found = json.loads(results.beside(done, ".summary.json").read_text("utf-8"))
    assert "choices" in page and page.count("<svg") >= 4
    for row in found["results"]:
        assert f"{row['mean']:.3f}" in page


@pytest.mark.parametrize(
    "words, told",
    [
        (["TASKS=jcq=a.json"], "JI-EVAL"),
        (["TASKS=choices=none.jsonl"], "none.jsonl"),
        (["TASKS=choices"], "JI-EVALUATE-001"),
        (["SHOTS=-1"], "JI-EVALUATE-004"),
        (["SHOTS=12"], "JI-EVALUATE-006"),
        (["TASK_TEMPLATES=nothing"], "JI-EVALUATE-005"),
        (["SHOTS_FROM=jnli=x.json"], "JI-EVALUATE-002"),
        (["FORMAT=talk"], "JI-EVALUATE-011"),
        (["BY=luck"], "JI-EVALUATE-007"),
        (["MODELS=a=nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_bad_settings_are_told(model, files, tmp_path, capsys, words, told):
    assert evaluate(model, files, tmp_path / "r.jsonl", *words) != 0
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows, told",
    [
        (['{"input": "問", "choices": ["一", "二"], "label": 5}'], "bad.jsonl:1"),
        (['{"input": "問", "choices": ["一", "二"]}'], "bad.jsonl:1"),
        (['{"question": "問", "choices": ["一", "二"], "label": 0}'], "no field input"),
        (['{"id": 1, "input": "問", "choices": ["一", "二"], "label": 0}'] * 2, "bad.jsonl:2"),
    ],
    ids=["label", "no label", "columns", "ids"],
)
def test_bad_files_are_told_by_line(model, files, tmp_path, capsys, rows, told):
    (tmp_path / "bad.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    out = tmp_path / "r.jsonl"
    assert evaluate(model, files, out, f"TASKS=choices={tmp_path}/bad.jsonl") != 0
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_random_model_is_at_chance(model, shared_data, tmp_path):
    """Its choice has nothing to do with the right one: accuracy = Σ over places of P(chosen) · P(right), within 3.3
    standard errors (all of about 14 templates at once, with a false alarm in 100)."""
    folder, out = shared_data / "eval", tmp_path / "r.jsonl"
    names = {"jcommonsenseqa": "jcommonsenseqa_valid.json", "jnli": "jnli_valid.json"}
    names["jmmlu"] = "jmmlu_japanese_history.csv"
    asked = ",".join(f"{name}={folder / file}" for name, file in names.items())
    assert evaluate(model, None, out, f"TASKS={asked}", "LIMIT=300") == 0
    for line in lines_of(out):
        rows = results.read_predictions(out, line["key"])
        right = [row["choices"].index(row["targets"][0]) for row in rows]
        chosen = [row["choices"].index(row["prediction"]) for row in rows]
        count = len(rows[0]["choices"])
        shares = [np.bincount(places, minlength=count) / len(rows) for places in (right, chosen)]
        expected = float(np.dot(*shares))
        error = (expected * (1 - expected) / len(rows)) ** 0.5
        print(line["task"], line["template"], line["metrics"]["accuracy"], expected, line["chance"])
        assert abs(line["metrics"]["accuracy"] - expected) < 3.3 * error
        # Negative control: the oracle is not at chance.
        assert abs(1 - expected) > 3.3 * error
