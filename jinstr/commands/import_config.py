"""`jinstr import-config`: a training configuration of LLaMA-Factory becomes a recipe."""

from __future__ import annotations

import json
import pathlib
import re
import reprlib
from collections.abc import Sequence
from typing import Any

import yaml

from jinstr import errors, redact
from jinstr.data import llama_factory as data_lib
from jinstr.train import llama_factory as train_lib
from jinstr.train import llama_factory_keys as keys

_TITLES = {
    data_lib.ACT: "To do before it runs",
    data_lib.RESULTS: "Not taken over as it stands, changes results",
    data_lib.NONE: "Not taken over, changes no result",
}


def import_config(*, train: str, datasets: str, out: str, devices: int) -> dict:
    """Print the recipe that `train` (YAML) and `datasets` (dataset_info.json) amount to, and write it to `out`.

    datasets: "" = dataset_info.json in the dataset_dir of `train`. out: "" = printed only. devices: how many the batch
    of LLaMA-Factory was spread over. Returns {"command", "recipe", "notes"}; notes are (key, why, effect), a row for
    each key that has no counterpart or not the same meaning. Errors: ConfigError naming file and key.
    """
    if devices < 1:
        raise errors.ConfigError("JI-IMPORT-003", f"DEVICES={devices}; it is at least 1")
    read = keys.Reader(file=train, values=_yaml(pathlib.Path(train).expanduser()))
    notes: list[data_lib.Note] = []
    command = train_lib.command(read)
    found = train_lib.settings_of(read, devices, notes)
    sources, held, more = _data(read, datasets, notes)
    found += more
    notes += keys.left_over(read)
    name = out or f"{pathlib.Path(train).stem}.gin"
    recipe = _recipe(command, name, pathlib.Path(train).name, found, sources, held, notes)
    print(recipe, end="")
    if out:
        _write(pathlib.Path(out).expanduser(), recipe)
    first, changing, others = (sum(note.effect == effect for note in notes) for effect in _TITLES)
    print(
        f"# {len(found)} settings; to do first: {first}; keys that change results: {changing}; others: {others}"
    )
    return {"command": command, "recipe": recipe, "notes": notes}


def _yaml(path: pathlib.Path) -> dict[str, Any]:
    """The keys of a YAML file. Errors: ConfigError for anything but a mapping of plain values."""
    try:
        values = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError("JI-IMPORT-001", f"{path} is not readable: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise errors.ConfigError("JI-IMPORT-001", f"{place}: not plain YAML: {problem}") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise errors.ConfigError("JI-IMPORT-001", f"{path} holds {kind}, not keys with values")
    for key in values:
        if not isinstance(key, str):
            kind = type(key).__name__
            raise errors.ConfigError("JI-IMPORT-001", f"{path}: the key {key} ({kind}) is not text")
    return values


def _info(path: pathlib.Path) -> dict[str, Any]:
    """The content of dataset_info.json. Errors: ConfigError."""
    try:
        info = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise errors.ConfigError(
            "JI-IMPORT-002",
            f"{path} is not readable: {error}; say DATASETS=path of dataset_info.json",
        ) from None
    if not isinstance(info, dict):
        raise errors.ConfigError(
            "JI-IMPORT-002", f"{path} holds {type(info).__name__}, not an object"
        )
    return info


def _data(
    read: keys.Reader, datasets: str, notes: list[data_lib.Note]
) -> tuple[list[dict], list[dict], list[keys.Setting]]:
    """(sources, sources for evaluation only, settings of the mixture). Errors: ConfigError."""
    asked = data_lib.names(read.values.get("dataset") or "", read.file, "dataset")
    if not asked:
        raise errors.ConfigError(
            "JI-IMPORT-003", f"{read.file}: dataset is not given; it names the data"
        )
    kept = data_lib.names(read.values.get("eval_dataset") or "", read.file, "eval_dataset")
    read.asked |= {"dataset", "eval_dataset"}
    folder = read.get("dataset_dir", "data")
    path = pathlib.Path(datasets or f"{folder}/dataset_info.json").expanduser()
    info = _info(path)
    is_text = read.get("stage", "sft") == "pt"
    found: dict[str, dict] = {}
    for name in dict.fromkeys([*asked, *kept]):
        fields, said = data_lib.source(
            info, name, file=str(path), folder=path.parent, is_text=is_text
        )
        found[name] = fields
        notes += said
    sources = [dict(found[name]) for name in asked]
    if read.has("max_samples"):
        limit = read.positive("max_samples", 1)
        for fields in sources:
            fields["limit"] = min(limit, fields.get("limit") or limit)
    share = read.get("val_size", 0.0)
    if share < 0:
        raise errors.ConfigError("JI-IMPORT-003", f"{read.file}: val_size = {share:g} is below 0")
    if share >= 1:
        why = f"a number of examples ({share:g}): set holdout below to {share:g} / examples of the source"
        notes.append(data_lib.Note("val_size", why, data_lib.RESULTS))
    elif share:
        why = "kept aside by a hash of the question, so that answers to one question stay together, not by row"
        notes.append(data_lib.Note("val_size", why, data_lib.RESULTS))
        sources = [fields | {"holdout": share} for fields in sources]
    return sources, [found[name] for name in kept], _mixture(read, sources, notes)


def _mixture(
    read: keys.Reader, sources: Sequence[dict], notes: list[data_lib.Note]
) -> list[keys.Setting]:
    """RATE_UNIT; the rates go into `sources`. Errors: ConfigError for shares that are no numbers."""
    strategy = read.get("mix_strategy", "concat")
    asked = read.values.get("interleave_probs") or []
    read.asked |= {"interleave_probs"}
    if strategy == "concat":
        return []
    try:
        rates = [float(word) for word in (asked.split(",") if isinstance(asked, str) else asked)]
    except (TypeError, ValueError):
        rates = []
    if asked and len(rates) != len(sources):
        raise errors.ConfigError(
            "JI-IMPORT-003",
            f"{read.file}: interleave_probs = {reprlib.repr(asked)} is no number for each of {len(sources)} data sets",
        )
    for fields, rate in zip(sources, rates):
        fields["rate"] = rate
    why = f"{strategy} ends when a set is used up; jinstr counts an epoch as if all were read once; set NUM_STEPS"
    notes.append(data_lib.Note("mix_strategy", why, data_lib.RESULTS))
    return [
        keys.Setting("RATE_UNIT", "examples", "mix_strategy, interleave_probs: shares of examples")
    ]


def _scopes(count: int, prefix: str) -> list[str]:
    return [f"{prefix}{number}" for number in range(1, count + 1)]


def _recipe(
    command: str,
    out: str,
    made_from: str,
    found: Sequence[keys.Setting],
    sources: Sequence[dict],
    held: Sequence[dict],
    notes: Sequence[data_lib.Note],
) -> str:
    """The text of the recipe."""
    lines = [
        f"# {_comment(made_from)} of LLaMA-Factory, made a recipe by jinstr import-config. Not run.",
        f"#   jinstr {command} {_comment(out)} --dry_run",
        "from __gin__ import dynamic_registration",
        "from jinstr.data import sources",
        *(["from jinstr.models import config"] if _uses(found, "config.") else []),
        "from jinstr.train import optimizer",
        "",
        f'include "gin_configs/run/{command}.gin"',
        "",
    ]
    for name, value, why in found:
        lines.append(f"{name} = {_literal(value)}" + (f"  # {_comment(why)}" if why else ""))
    lines.append("")
    for name, rows, prefix in (("DATA", sources, "data"), ("EVAL_DATA", held, "eval")):
        scopes = _scopes(len(rows), prefix)
        if rows:
            parts = "".join(f"@{scope}/sources.SourceConfig(), " for scope in scopes)
            lines.append(f"{name} = ({parts[: -1 if len(scopes) == 1 else -2]})")
        for scope, fields in zip(scopes, rows):
            for key, value in fields.items():
                if value != "":
                    lines.append(f"{scope}/sources.SourceConfig.{key} = {_literal(value)}")
            lines.append(f'{scope}/sources.SourceConfig.licence = ""  # the model card lists it')
    for effect, title in _TITLES.items():
        told = [note for note in notes if note.effect == effect]
        lines += ["", f"# {title}:"] if told else []
        lines += [f"#   {_comment(note.key)}: {_comment(note.why)}" for note in told]
    return redact.text("\n".join(lines)) + "\n"


def _uses(found: Sequence[keys.Setting], beginning: str) -> bool:
    return any(setting.name.startswith(beginning) for setting in found)


def _literal(value: Any) -> str:
    """A value as gin files write it, in one line; text in double quotes where that is the text itself."""
    if isinstance(value, str) and value.isprintable() and not set(value) & set('"\\'):
        return f'"{value}"'
    return repr(value)


def _comment(text: str) -> str:
    """The text in one line: a line break in a file's key would begin a line of the recipe."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)


def _write(path: pathlib.Path, recipe: str) -> None:
    """Errors: ConfigError where another file is there; StorageError."""
    if path.exists() and path.read_bytes() != recipe.encode():
        raise errors.ConfigError(
            "JI-IMPORT-005", f"OUT={path} is there already; take another name, or remove it"
        )
    try:
        path.write_text(recipe, "utf-8")
    except OSError as error:
        raise errors.StorageError("JI-IMPORT-006", f"cannot write {path}: {error}") from None
