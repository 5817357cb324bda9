"""report.html: a run as a page that people look at, with report.json beside it; every number on it is one of those.

One self-contained file, Japanese with an English switch. Numbers are written by `number` alone and carry the path of
their value in report.json, so that a test holds the page against the file.
"""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import jinja2

from jinstr.train import metrics, storage

CHARTS = (  # (Japanese, English, metric or ending, log scale)
    ("学習の損失", "training loss", "train/loss"),
    ("未知データの損失", "held-out loss", "/loss"),
    ("1バイトあたりのビット数", "bits per byte", "/bits_per_byte"),
    ("正答率", "accuracy", "/accuracy"),
    ("自分で終わった答えの割合", "answers that end", "/ended"),
    ("報酬", "score", "rl/objective/score"),
    ("取り置いた質問での報酬", "score on held-out questions", "/score"),
    ("参照モデルからの KL（ナット）", "KL from the reference, nats", "rl/objective/kl_seq"),
    ("エントロピー", "entropy", "rl/objective/entropy"),
    ("答えの長さ（トークン）", "length of answers, tokens", "rl/gen/length_mean"),
    ("表現の多様さ（異なり 2-gram の割合）", "distinct bigrams", "rl/gen/distinct_2"),
    (
        "点数と長さの相関",
        "correlation of score and length",
        "rl/objective/score_length_correlation",
    ),
    ("価値関数の説明率", "explained variance of the critic", "rl/value/explained_variance"),
    ("更新での KL", "KL of the updates", "rl/policy/approx_kl"),
    ("学習率", "learning rate", "train/learning_rate"),
    ("勾配ノルム", "gradient norm", "train/grad_norm"),
    ("速度（トークン/秒）", "tokens per second", "train/tokens_per_second"),
    ("演算器の利用率", "share of matmul peak", "train/mfu"),
)
MOST_POINTS = 400  # points drawn of one curve
SHOWN_SAMPLES = 12


def number(value) -> str:
    """A value as the page shows it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if abs(value) < 1e10 and float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) >= 100 else f"{value:.4f}"


def _read(path: pathlib.Path, default):
    return json.loads(path.read_text("utf-8")) if path.is_file() else default


def collect(run_dir) -> dict:
    """Everything the page tells of one run, from the files of its directory."""
    run_dir = pathlib.Path(run_dir)
    config = _read(run_dir / "config.json", {})
    lines = metrics.read_lines(run_dir / "metrics.jsonl")
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                curves.setdefault(name, []).append((line["step"], value))
    return {
        "name": run_dir.name,
        "command": config.get("command", ""),
        "version": config.get("version", ""),
        "settings": config.get("settings", {}),
        "summary": _read(run_dir / "summary.json", {}),
        "baselines": _read(run_dir / "baselines.json", {}),
        "data": _read(run_dir / "data.json", []),
        "last": {name: points[-1][1] for name, points in curves.items()},
        "first": {name: points[0][1] for name, points in curves.items()},
        "curves": curves,
        "samples": metrics.read_lines(run_dir / "samples.jsonl"),
        "incidents": metrics.read_lines(run_dir / "incidents.jsonl"),
    }


def _thin(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    step = -(-len(points) // MOST_POINTS)
    return [*points[::step], points[-1]] if points else points


def _chart(
    curves: Mapping[str, Sequence], baselines: Mapping[str, float], across: str = "step"
) -> str:
    """An SVG of one or several curves over what is told `across`; baselines are dashed lines."""
    import matplotlib
    from matplotlib import figure

    matplotlib.rcParams["svg.fonttype"] = (
        "none"  # text stays text: the reader's fonts know Japanese
    )
    matplotlib.rcParams["svg.hashsalt"] = "jinstr"
    drawing = figure.Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = drawing.subplots()
    for name, points in curves.items():
        steps, values = zip(*_thin(points))
        marker = "o" if len(points) < 12 else ""
        label = name.removeprefix("eval/").rpartition("/")[0] if name.startswith("eval/") else name
        axes.plot(steps, values, marker=marker, markersize=3.5, linewidth=1.6, label=label)
    for number_, (name, value) in enumerate(baselines.items()):
        axes.axhline(
            value, linestyle="--", linewidth=1, color=f"C{len(curves) + number_}", label=name
        )
    axes.grid(alpha=0.25)
    axes.set_xlabel(across)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(curves) + len(baselines) > 1:
        axes.legend(fontsize=8, frameon=False)
    target = io.StringIO()
    drawing.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    svg = target.getvalue()
    return svg[svg.index("<svg") :]


def _charts(run: dict) -> list[dict]:
    found = []
    for japanese, english, ending in CHARTS:
        is_exact = ending.startswith(("train/", "rl/"))
        chosen = {
            name: points
            for name, points in run["curves"].items()
            if (name == ending if is_exact else name.startswith("eval/") and name.endswith(ending))
        }
        if chosen:
            baselines = run["baselines"] if ending == "/bits_per_byte" else {}
            found.append(
                {"japanese": japanese, "english": english, "svg": _chart(chosen, baselines)}
            )
    if bought := _score_by_kl(run["curves"]):
        svg = _chart({"score": bought}, {}, across="KL, nats")
        found.append({"japanese": "KL に対する報酬", "english": "score by KL", "svg": svg})
    return found


def _score_by_kl(curves: Mapping[str, Sequence]) -> list[tuple[float, float]]:
    """(KL, score) of every iteration, in their order: what the policy bought by moving away from its reference."""
    kl = dict(curves.get("rl/objective/kl_seq", ()))
    score = dict(curves.get("rl/objective/score", ()))
    return [(kl[step], score[step]) for step in kl if step in score]


def _pairs(run: dict) -> list[dict]:
    """First and last answer to each prompt of a run, in order of appearance."""
    found: dict[tuple[str, str], list[dict]] = {}
    for sample in run["samples"]:
        found.setdefault((sample["set"], sample["prompt"]), []).append(sample)
    some = list(found.values())
    return [{"first": lines[0], "last": lines[-1]} for lines in some[:SHOWN_SAMPLES]]


_CARDS = (  # (Japanese, English, path in the run)
    ("パラメータ数", "parameters", "summary.parameters"),
    ("学習したトークン数", "tokens trained on", "summary.tokens"),
    ("ステップ数", "steps", "summary.steps"),
    ("計算量 (FLOP)", "FLOPs", "summary.flops"),
    ("学習時間（秒）", "seconds of training", "summary.train_seconds"),
    ("最後の損失", "last training loss", "last.train/loss"),
)


def _cards(run: dict) -> list[dict]:
    found = []
    for japanese, english, path in _CARDS:
        part, _, name = path.partition(".")
        if name in run[part]:
            found.append({"japanese": japanese, "english": english, "part": part, "name": name})
    ends = ("/bits_per_byte", "/ended", "/score")
    for name in run["last"]:
        if name.startswith("eval/") and name.endswith(ends):
            found.append({"japanese": name, "english": name, "part": "last", "name": name})
    return found


def _summary_accuracy(run: dict) -> dict:
    return run["summary"].get("accuracy", {})


def write(run_dir, *, title: str, previous: Sequence = ()) -> pathlib.Path:
    """Write RUN_DIR/report.json and report.html; `previous` runs (a base model) come first on the page."""
    run_dir = pathlib.Path(run_dir)
    runs = [collect(folder) for folder in (*previous, run_dir)]
    # Through JSON, so that what is shown is what the file holds.
    report = json.loads(json.dumps({"title": title, "runs": runs}, ensure_ascii=False))
    storage.write_json(run_dir / "report.json", report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    sections = [
        {
            "charts": _charts(run),
            "pairs": _pairs(run),
            "cards": _cards(run),
            "accuracy": _summary_accuracy(run),
            "settings": json.dumps(run["settings"], ensure_ascii=False, indent=1, sort_keys=True),
        }
        for run in report["runs"]
    ]
    page = environment.get_template("report.html.j2").render(report=report, sections=sections)
    path = run_dir / "report.html"
    aside = path.with_suffix(".html.tmp")
    aside.write_text(page, "utf-8")
    aside.replace(path)
    return path
