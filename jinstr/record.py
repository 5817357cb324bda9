"""The record of a run: config.gin, operative_config.gin and config.json in its directory.

config.gin runs again as it is, operative_config.gin also holds every default, config.json holds the values that the
command was called with: {"command", "version", "digest", "settings"}, and "place", the folder that it was called in,
where relative paths of the settings begin. `read` turns the last one back into arguments; a .gin file that lies in a
run directory is for people, and no command reads it unasked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import jinstr
from jinstr import cli, errors, redact, settings

AGAIN = "start the run's command again instead, with its .gin files and settings"


def of(command: str, version: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json. Secrets are left out; their digest, from which they could be guessed, too."""
    shown = redact.tree(as_json(kwargs))
    return {
        "command": command,
        "version": version,
        "digest": digest(shown),
        "settings": shown,
    }


def as_json(value: Any) -> Any:
    """Resolved settings as JSON values: dataclasses become objects, modules' functions their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def digest(kwargs: dict[str, Any]) -> str:
    """Hex digest of settings in their JSON form, independent of key order."""
    text = json.dumps(as_json(kwargs), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON settings as {"optimizer.learning_rate": 0.001, …}."""
    if not isinstance(value, dict):
        return {prefix: value}
    rows: dict[str, Any] = {}
    for key, item in value.items():
        rows |= flat(item, f"{prefix}.{key}" if prefix else key)
    return rows


def write(run_dir: pathlib.Path, record: dict[str, Any], config: str, operative: str) -> list[str]:
    """Write the three files; returns one line per setting that differs from the record found there.

    An earlier record that differs is kept under the next free number (config.1.gin, …). Errors: StorageError.
    """
    files = {"config.gin": config, "operative_config.gin": operative}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        changes = _changes(run_dir / "config.json", record)
        placed = record | {"place": _place(run_dir / "config.json", changes)}
        files["config.json"] = (
            json.dumps(placed, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        )
        if changes:
            _set_aside(run_dir, files)
        for name, text in files.items():
            part = run_dir / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(run_dir / name)
    except OSError as error:
        raise errors.StorageError("JI-RUN-001", f"cannot write to {run_dir}: {error}") from None
    return changes


def _changes(path: pathlib.Path, record: dict[str, Any]) -> list[str]:
    if not path.exists():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return [f"{path} was not readable"]
    old, new = flat(before), flat(json.loads(json.dumps(record)))
    missing = "(not set)"
    return [
        f"{name}: {old.get(name, missing)!r} before, {new.get(name, missing)!r} now"
        for name in sorted(old.keys() | new.keys())
        if name not in ("digest", "place") and old.get(name, missing) != new.get(name, missing)
    ]


def _place(path: pathlib.Path, changes: list[str]) -> str:
    """This folder, or that of the first start: the same settings tried elsewhere do not move what they name."""
    if changes or not path.exists():
        return redact.text(os.getcwd())
    before = json.loads(path.read_text(encoding="utf-8")).get("place")
    return before if isinstance(before, str) else redact.text(os.getcwd())


def progress(run_dir: pathlib.Path) -> list[tuple[str, int]]:
    """What training has left in a run directory: it changes once a start was accepted and did something."""
    files = [*run_dir.glob("checkpoints/*/manifest.json"), *run_dir.glob("metrics.jsonl")]
    return sorted((str(path), path.stat().st_mtime_ns) for path in files)


def set_back(run_dir: pathlib.Path) -> None:
    """Undo `write` after a start that was refused: the record that it set aside takes its place again."""
    number = _free_number(run_dir) - 1
    for name in ("config.gin", "operative_config.gin", "config.json"):
        stem, _, suffix = name.partition(".")
        aside = run_dir / f"{stem}.{number}.{suffix}"
        if aside.exists():
            aside.replace(run_dir / name)


def _free_number(run_dir: pathlib.Path) -> int:
    number = 1
    while (run_dir / f"config.{number}.json").exists():
        number += 1
    return number


def _set_aside(run_dir: pathlib.Path, names: Any) -> None:
    number = _free_number(run_dir)
    for name in names:
        stem, _, suffix = name.partition(".")
        if (run_dir / name).exists():
            (run_dir / name).replace(run_dir / f"{stem}.{number}.{suffix}")


def read(run_dir: pathlib.Path, *, module: str = "") -> tuple[str, dict[str, Any]]:
    """The command of a run and the arguments that its function was called with, from config.json alone.

    The types come from the function's signature: the file names no class and no function. A module of the user's own
    is Python code, so one that the file names is accepted only when the caller names it too (`module`).
    Errors: ConfigError that says which field is unknown, missing or of a wrong type, or that the file is not there,
    was changed by hand, was written by another version, or lacks a secret.
    """
    path = pathlib.Path(run_dir) / "config.json"
    found = _checked(path)
    types_by_name = settings.types_of(cli.entry_function(found["command"]))
    types_by_name.pop("return", None)
    kwargs = _fields_of(found["settings"], types_by_name, f"{path}: settings")
    for where, name in _modules(found["settings"], "settings"):
        if name != module:
            raise errors.ConfigError(
                "JI-RECORD-006",
                f"{path}: {where} = {name!r} is Python code that would be run; if you trust it, add MODULE={name}",
            )
    for name, value in flat(found["settings"]).items():
        if redact.MARK in str(value):
            raise errors.ConfigError(
                "JI-RECORD-007",
                f"{path}: settings.{name} held a secret, which was not written down; {AGAIN}",
            )
    return found["command"], kwargs


def _checked(path: pathlib.Path) -> dict[str, Any]:
    """The content of config.json. Errors: ConfigError unless it is whole, of this version and a training command's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "not there" if isinstance(error, FileNotFoundError) else f"not readable ({error})"
        raise errors.ConfigError("JI-RECORD-001", f"{path} is {reason}; {AGAIN}") from None
    wanted = {"command": str, "version": str, "digest": str, "settings": dict}
    kinds = {k: type(v) for k, v in found.items()} if isinstance(found, dict) else {}
    if kinds not in (wanted, wanted | {"place": str}):
        message = f"{path} is not an object of {', '.join(wanted)}; {AGAIN}"
        raise errors.ConfigError("JI-RECORD-002", message)
    known = [command.name for command in cli.TRAINING.commands]
    if found["command"] not in known:
        message = f"{path}: command = {found['command']!r}; only {', '.join(known)} can go on"
        raise errors.ConfigError("JI-RECORD-002", message)
    if found["version"] != jinstr.__version__:
        raise errors.ConfigError(
            "JI-RECORD-003",
            f"{path} was written by jinstr {found['version']}, this is {jinstr.__version__}; {AGAIN}",
        )
    if (now := digest(found["settings"])) != found["digest"]:
        raise errors.ConfigError(
            "JI-RECORD-004",
            f"{path}: the settings were changed: their digest is {now}, not {found['digest']}; {AGAIN}",
        )
    return found


def _fields_of(values: Any, annotations: dict[str, Any], where: str) -> dict[str, Any]:
    """JSON values by name as values of these types. Errors: ConfigError for unknown and missing names, wrong types."""
    if not isinstance(values, dict):
        raise errors.ConfigError("JI-RECORD-005", f"{where} = {values!r} is not an object")
    for name in values.keys() - annotations.keys():
        near = settings.did_you_mean(name, annotations)
        raise errors.ConfigError("JI-RECORD-005", f"{where}.{name} is not known{near}")
    for name in annotations.keys() - values.keys():
        raise errors.ConfigError("JI-RECORD-005", f"{where}.{name} is missing")
    return {
        name: _typed(values[name], wanted, f"{where}.{name}")
        for name, wanted in annotations.items()
    }


def _typed(value: Any, wanted: Any, where: str) -> Any:
    """A JSON value as a value of type `wanted`: objects become dataclasses, lists become tuples."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        wanted = next((arm for arm in arguments if _may_be(value, arm)), wanted)
        origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if dataclasses.is_dataclass(wanted):
        known = {field.name for field in dataclasses.fields(wanted)}
        annotations = {k: v for k, v in settings.types_of(wanted).items() if k in known}
        fields = _fields_of(value, annotations, where)
        try:
            return wanted(**fields)
        except errors.JinstrError as error:  # from a __post_init__
            raise errors.ConfigError(error.code, f"{where}: {error.message}") from None
    if origin in (tuple, list) and isinstance(value, list):
        each = (
            arguments[:1] * len(value) if len(arguments) < 2 or arguments[1] is ... else arguments
        )
        if len(each) == len(value):
            numbered = enumerate(zip(value, each))
            return origin(_typed(item, kind, f"{where}[{i}]") for i, (item, kind) in numbered)
    elif settings.matches(value, wanted):
        return value
    message = (
        f"{where} = {value!r} ({type(value).__name__}), but it is {settings.type_name(wanted)}"
    )
    raise errors.ConfigError("JI-RECORD-005", message)


def _may_be(value: Any, arm: Any) -> bool:
    """Is this the arm of a union that a JSON value was written from?"""
    if isinstance(value, dict):
        return dataclasses.is_dataclass(arm)
    if isinstance(value, list):
        return typing.get_origin(arm) in (tuple, list)
    return settings.matches(value, arm)


def _modules(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """(place, name) of every module that settings in JSON form ask for."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "module" and item:
                yield f"{where}.{key}", item
            if key == "reward" and isinstance(item, str):  # module:function*weight,…
                for name in re.findall(r"(?:^|,)\s*([A-Za-z_][\w.]*):[A-Za-z_]", item):
                    yield f"{where}.{key}", name
            yield from _modules(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _modules(item, f"{where}[{index}]")
