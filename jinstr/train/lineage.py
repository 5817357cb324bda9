"""Where a model comes from: the run, the run that it started from (INIT), and so on, as facts for its card.

Everything is read from what runs leave in their directories (config.json, summary.json, data.json, metrics.jsonl,
incidents.jsonl, model.json); nothing is computed and no checkpoint is opened. What a file does not say is None or "".
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from jinstr import errors, redact
from jinstr.data import readers
from jinstr.data import sources as sources_lib
from jinstr.train import adapters, licences, metrics, model_files

HUB = "hf:"  # what INIT begins with where the base is a Hugging Face folder or repository
_OPTIMIZER = (
    "name",
    "learning_rate",
    "muon_learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "clip_norm",
)
_LORA = ("rank", "alpha", "targets")
# Two folders at least, so that "和文/英文" stays; what stands before tells addresses (https://…) apart.
_FOLDERS = re.compile(
    r"(?:file://|(?<![A-Za-z0-9_:/.~-]))(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\,;:*?\"'<>|、。，（）「」]+){2,}[/\\]?"
)


def published(text: str) -> str:
    """The text without secrets, and with the last part only of every absolute path: a card is read by anyone."""

    def last(found: re.Match) -> str:
        return re.split(r"[/\\]", found[0].rstrip("/\\"))[-1]

    return _FOLDERS.sub(last, redact.text(text))


def read(path: pathlib.Path, default):
    """The JSON of a file; `default` where there is none. Errors: StorageError for anything but JSON of its type."""
    if not path.is_file():
        return default
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise errors.StorageError("JI-CARD-001", f"{path} is not readable: {error}") from None
    if not isinstance(found, type(default)):
        kind = type(found).__name__
        raise errors.StorageError(
            "JI-CARD-001", f"{path} holds {kind}, not {type(default).__name__}"
        )
    return found


def init_of(run_dir: pathlib.Path) -> str:
    """What a run was started from: "", "RUN_DIR[@step]" or "hf:…"."""
    return str(_settings(run_dir).get("init", ""))


def _settings(run_dir: pathlib.Path) -> dict:
    found = read(run_dir / "config.json", {}).get("settings", {})
    return found if isinstance(found, dict) else {}


def place_of(run_dir: pathlib.Path, init: str) -> tuple[pathlib.Path, int]:
    """(directory, step or 0) of the run that `init` names, seen from `run_dir`.

    Runs that were moved together are found: what counts first is where INIT lay beside the recorded RUN_DIR.
    """
    word, _, step = init.partition("@")
    places = _places(run_dir, word)
    found = next((place for place in places if (place / "config.json").is_file()), places[-1])
    return found, int(step) if step.isdigit() else 0


def _places(run_dir: pathlib.Path, word: str) -> list[pathlib.Path]:
    """Where a folder that a run was given may be now: beside the run as it was then, or as it was written."""
    then = read(run_dir / "config.json", {}).get("place", "")  # what relative paths began at
    recorded = str(_settings(run_dir).get("run_dir", ""))
    place = pathlib.Path(word).expanduser()
    then = pathlib.Path(then if isinstance(then, str) else "")
    given = then / place
    if not recorded:
        return [given, place]
    beside = os.path.relpath(given, then / pathlib.Path(recorded).expanduser())
    return [pathlib.Path(os.path.normpath(run_dir.absolute() / beside)), given, place]


def base_of(run_dir: pathlib.Path, init: str) -> str:
    """ "hf:…" that a run began with, seen from here: "hf:/folder", or "hf:org/name[@revision]" of the hub.

    "hf:a/b" may be either. It is the hub's where lora.json or a revision says so, or the cache has it; otherwise it is
    a folder, there or gone, since the name of a folder at home may be that of somebody else's model on the hub.
    """
    word = init.removeprefix(HUB)
    kept = str(read(run_dir / adapters.FILE, {}).get("init", ""))  # resolved when the run began
    is_kept = kept.startswith(HUB)
    places = _places(run_dir, word)
    if is_kept and pathlib.Path(kept.removeprefix(HUB)).is_absolute():
        places.append(pathlib.Path(kept.removeprefix(HUB)))
    elif is_kept:
        return kept
    for place in places:
        if place.is_dir():
            return f"{HUB}{place.absolute()}"
    name, _, revision = word.partition("@")
    if licences.is_hub_name(name) and (revision or licences.cached(name, "main")):
        return init
    return f"{HUB}{places[0].absolute()}"


def adapter_of(run_dir: pathlib.Path) -> pathlib.Path | None:
    """The folder of the PEFT adapter that a run began as (LORA_INIT), there or gone; None where there was none."""
    start = _asked_lora(run_dir).get("start")
    if not isinstance(start, str) or not start:
        return None
    places = _places(run_dir, start)
    return next((place for place in places if place.is_dir()), places[0])


def _asked_lora(run_dir: pathlib.Path) -> dict:
    """LoraConfig as it was asked for; sft has it under another name than pretrain."""
    settings = _settings(run_dir)
    for name in ("execution", "model"):
        if isinstance(part := settings.get(name), dict) and isinstance(part.get("lora"), dict):
            return part["lora"]
    return {}


def _lora(run_dir: pathlib.Path) -> dict:
    """Rank, alpha and targets that were trained with (those of LORA_INIT are in lora.json only); None without any."""
    found = read(run_dir / adapters.FILE, {}).get("lora")
    found = found if isinstance(found, dict) else {}
    lora = {name: found.get(name) for name in _LORA}
    if lora["rank"] and not lora["alpha"]:
        lora["alpha"] = 2 * lora["rank"]  # what 0 stands for
    return lora


def chain(run_dir, step: int = 0) -> tuple[list[dict], str]:
    """(stages, base): the run and those before it, oldest first, and the "hf:…" that the oldest began with, or "".

    A run that is not there is a stage with `found` False; what lies before it is not known.
    Errors: StorageError for a file that is there and cannot be read.
    """
    stages: list[dict] = []
    place = pathlib.Path(run_dir)
    for place, number in walk(run_dir, step):
        stages.insert(0, stage(place, number))
    init = init_of(place)
    if stages and init.startswith(HUB):
        return stages, base_of(place, init)
    if init or not stages:
        gone = place_of(place, init)[0] if stages else place
        lacking = {"sources": [], "evaluation": [], "adapter": None}
        stages.insert(0, {"name": gone.name, "found": False} | lacking)
    return stages, ""


def walk(run_dir, step: int = 0) -> Iterator[tuple[pathlib.Path, int]]:
    """(directory, step) of a run and of those before it, newest first, as far as they are there."""
    place, seen = pathlib.Path(run_dir), set()
    while (place / "config.json").is_file() and place.resolve() not in seen:
        yield place, step
        seen.add(place.resolve())
        init = init_of(place)
        if not init or init.startswith(HUB):
            return
        place, step = place_of(place, init)


def training_files(run_dir) -> tuple[dict[str, str], list[str]]:
    """(files, gone): where the training data of a run and of those before it lies now, by the name of its source, and
    the names of what cannot be read: files that are not here, sets of other kinds, models whose data nobody knows.
    """
    files: dict[str, str] = {}
    gone = []
    place = pathlib.Path(run_dir)
    for place, _ in walk(run_dir):
        settings = _settings(place)
        asked = [row for name in ("data", "text") for row in _asked_for(settings.get(name) or {})]
        if prompts := (settings.get("questions") or {}).get("prompts"):
            asked.append({"name": "prompts", "path": prompts})
        for row in asked:
            path = _now(place, row.get("path") or "")
            name = row["name"]
            if path in files.values():
                continue
            if path and name in files:
                name = f"{place.name}/{name}"
            if path:
                files[name] = path
            else:
                gone.append(name)
    if init := init_of(place):
        gone.append(init)
    return files, list(dict.fromkeys(gone))


def _now(run_dir: pathlib.Path, path: str) -> str:
    """Files that a run was given, as they are called from here; "" where one is gone."""
    found = []
    for part in filter(None, path.split("+")):
        for place in _places(run_dir, part):
            try:
                readers.named_files(str(place))
            except errors.DataError:
                continue
            found.append(str(place))
            break
        else:
            return ""
    return "+".join(found)


def origin(run_dir) -> pathlib.Path | None:
    """The Hugging Face folder that a run goes back to; None where there is none, or it is not here."""
    for place, _ in walk(run_dir):
        if (init := init_of(place)).startswith(HUB):
            return licences.folder_of(base_of(place, init))
    return None


def folders(run_dir) -> list[pathlib.Path]:
    """Folders of strangers' weights that a run's model was made from and that are here: adapters and base."""
    found = [adapter_of(place) for place, _ in walk(run_dir)] + [origin(run_dir)]
    return [folder for folder in dict.fromkeys(found) if folder is not None and folder.is_dir()]


def stage(run_dir: pathlib.Path, step: int = 0) -> dict:
    """The facts of one run up to `step` (0 = its end)."""
    config, settings = read(run_dir / "config.json", {}), _settings(run_dir)
    summary = read(run_dir / "summary.json", {})
    lines = metrics.read_lines(run_dir / "metrics.jsonl")
    # A later start may have logged more than the checkpoint that is published was trained on.
    lines = [line for line in lines if not step or line.get("step", 0) <= step]
    last = _last(lines)
    steps = step or summary.get("steps") or int(last.get("step", 0))
    is_whole = bool(summary) and steps == summary.get("steps")
    data = settings.get("data", {})
    return {
        "name": run_dir.name,
        "found": True,
        "command": str(config.get("command", "")),
        "version": str(config.get("version", "")),
        "finished": is_whole,
        "steps": steps,
        "tokens": summary.get("tokens") if is_whole else last.get("train/tokens"),
        "loss": last.get("train/loss"),
        "parameters": summary.get("parameters"),
        "machine": str(summary.get("machine", "")),
        "hours": summary["train_seconds"] / 3600 if is_whole else None,
        "wall_hours": summary["wall_seconds"] / 3600 if is_whole else None,
        "template": template_name(run_dir),
        "seed": settings.get("seed"),
        "seq_len": data.get("seq_len"),
        "batch_tokens": data.get("batch_tokens"),
        "rate_unit": data.get("rate_unit"),
        "optimizer": {name: settings.get("optimizer", {}).get(name) for name in _OPTIMIZER},
        "lora": _lora(run_dir),
        "adapter": licences.of_folder(adapter) if (adapter := adapter_of(run_dir)) else None,
        "sources": _sources(run_dir, data, last, steps),
        "evaluation": _evaluation(lines, summary.get("accuracy", {})),
        "temperature": settings.get("evaluation_config", {}).get("temperature"),
        "eval_rows": data.get("eval_rows", 0),
        "incidents": len(metrics.read_lines(run_dir / "incidents.jsonl")),
        "changed": len(list(run_dir.glob("config.*.json"))),
    }


def template_name(run_dir: pathlib.Path) -> str:
    """The chat template of a run: a built-in name, "template.jinja", or ""."""
    return pathlib.Path(model_files.template_of(run_dir)).name


def _last(lines: Sequence[Mapping]) -> dict:
    """The last value of every metric."""
    found: dict = {}
    for line in lines:
        found |= line
    return found


def _sources(run_dir: pathlib.Path, data: Mapping, last: Mapping, steps: int) -> list[dict]:
    """One row for each source: licence, where it is from, and what was trained on it.

    passes: over its packed rows, as logged, or of a single source from steps and batch. tokens_trained = passes ×
    tokens of one pass; share is of these. A run that did not end has no data.json: names and licences only.
    """
    rows = read(run_dir / "data.json", []) or _asked_for(data)
    found = []
    for row in rows:
        passes = last.get(f"data/{row['name']}/epochs")
        if passes is None and len(rows) == 1 and row.get("rows") and data.get("seq_len"):
            passes = steps * (data["batch_tokens"] // data["seq_len"]) / row["rows"]
        has_count = passes is not None and row.get("tokens") is not None
        found.append(
            {name: row.get(name) for name in ("kind", "examples", "tokens", *sources_lib.TERMS)}
            | {
                "name": published(row["name"]),
                "licence": published(row.get("licence") or ""),
                "provenance": published(row.get("provenance") or ""),
                "passes": passes,
                "tokens_trained": round(passes * row["tokens"]) if has_count else None,
            }
        )
    counts = [row["tokens_trained"] for row in found]
    total = sum(counts) if counts and None not in counts else 0
    return [row | {"share": row["tokens_trained"] / total if total else None} for row in found]


def _asked_for(data: Mapping) -> list[dict]:
    """Rows of the sources that a run was told to read."""
    asked = data.get("data", "")
    if isinstance(asked, str):
        asked = (
            [{"name": s.name, "path": s.path} for s in sources_lib.parse(asked)] if asked else []
        )
    return [{name: row.get(name) for name in ("name", "path", *sources_lib.TERMS)} for row in asked]


def _evaluation(lines: Sequence[Mapping], accuracy: Mapping) -> list[dict]:
    """The last figure of every held-out set and task, with the first one, and chance and questions where known."""
    found: dict[str, dict] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith("eval/") and isinstance(value, int | float):
                name, _, metric = key.removeprefix("eval/").rpartition("/")
                row = found.setdefault(key, {"set": published(name), "metric": metric})
                if line["step"] == 0:
                    row["before"] = value
                row |= {"value": value, "step": line["step"]}
                task = accuracy.get(name, {}) if metric == "accuracy" else {}
                row |= {"chance": task.get("chance"), "count": task.get("count")}
    return [{"before": None} | row for _, row in sorted(found.items())]
