"""The report page against the JSON beside it, and against hostile text."""

import html.parser
import json

import pytest

from jinstr.train import report


class Page(html.parser.HTMLParser):
    """Numbers by their keys, and every tag."""

    def __init__(self):
        super().__init__()
        self.numbers, self.tags, self._key = {}, [], None

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._key = dict(attributes).get("data-key")

    def handle_data(self, data):
        if self._key:
            self.numbers[self._key] = data
            self._key = None


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "sft"
    folder.mkdir()
    lines = [
        {
            "step": s,
            "train/loss": 3.0 / s,
            "eval/a.b/bits_per_byte": 2.0 / s,
            "eval/facts/accuracy": s / 40,
        }
        for s in range(1, 31)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = [
        {
            "step": s,
            "set": "x",
            "prompt": "<script>alert(1)</script>",
            "answer": f"答え{s}",
            "ended": True,
        }
        for s in (0, 30)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    incident = {"step": 7, "kind": "non-finite", "message": "loss=nan <b>"}
    (folder / "incidents.jsonl").write_text(json.dumps(incident) + "\n")
    accuracy = {"facts": {"base": 0.0, "tuned": 0.75, "chance": 0.125, "count": 41}}
    (folder / "summary.json").write_text(
        json.dumps({"parameters": 1234567, "flops": 1.5e15, "accuracy": accuracy})
    )
    (folder / "baselines.json").write_text(json.dumps({"5-gram": 1.67}))
    row = {"name": "corpus", "kind": "lm", "examples": 10, "tokens": 1000, "fill": 0.998}
    row |= {"drops": {"bad row": 3}, "licence": "CC0", "provenance": "", "commercial": True}
    (folder / "data.json").write_text(json.dumps([row | {"redistributable": None}]))
    return folder


def value_at(value, key):
    """The value of report.json that a dotted key names; names may hold dots themselves."""
    if not key:
        return value
    if isinstance(value, list):
        head, _, rest = key.partition(".")
        return value_at(value[int(head)], rest)
    name = max((n for n in value if key == n or key.startswith(n + ".")), key=len)
    return value_at(value[name], key[len(name) + 1 :])


def differing(page, values):
    return [
        key for key, text in page.numbers.items() if text != report.number(value_at(values, key))
    ]


def test_every_number_is_the_json_s(run_dir):
    path = report.write(run_dir, title="試験")
    page = Page()
    page.feed(path.read_text("utf-8"))
    values = json.loads((run_dir / "report.json").read_text("utf-8"))
    assert len(page.numbers) >= 12 and differing(page, values) == []
    assert page.numbers["runs.0.summary.accuracy.facts.tuned"] == "0.7500"
    assert page.numbers["runs.0.data.0.drops.bad row"] == "3"
    # Negative control: another value in the file is seen.
    values["runs"][0]["summary"]["accuracy"]["facts"]["tuned"] = 0.76
    assert differing(page, values) == ["runs.0.summary.accuracy.facts.tuned"]


def test_text_of_samples_is_inert(run_dir):
    text = report.write(run_dir, title="<b>題</b>").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and "b" in page.tags
    assert "&lt;script&gt;alert(1)" in text and "<b>題" not in text
    assert page.tags.count("svg") == 3


def test_previous_runs_come_first(run_dir, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "metrics.jsonl").write_text('{"step": 1, "train/loss": 5.5}\n')
    report.write(run_dir, title="t", previous=[base])
    values = json.loads((run_dir / "report.json").read_text("utf-8"))
    assert [run["name"] for run in values["runs"]] == ["base", "sft"]


@pytest.mark.parametrize(
    "value, text", [(3, "3"), (12345.0, "12,345"), (0.5, "0.5000"), (1.5e15, "1.5e+15")]
)
def test_numbers(value, text):
    assert report.number(value) == text


def test_what_a_run_survived_is_told(run_dir):
    text = report.write(run_dir, title="t").read_text("utf-8")
    assert "non-finite" in text and "loss=nan &lt;b&gt;" in text and "loss=nan <b>" not in text
    (run_dir / "incidents.jsonl").unlink()
    assert "出来事" not in report.write(run_dir, title="t").read_text("utf-8")
