"""The record of a run: config.gin, operative_config.gin and config.json in its directory.

config.gin runs again as it is, operative_config.gin also holds every default, config.json holds the values that the
command was called with: {"command", "version", "digest", "settings"}.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from jinstr import errors

RANK_VARIABLES = (
    "JINSTR_PROCESS_ID",
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "TPU_WORKER_ID",
)


def of(command: str, version: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "command": command,
        "version": version,
        "digest": digest(kwargs),
        "settings": as_json(kwargs),
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


def digest(settings: dict[str, Any]) -> str:
    """Hex digest of settings in their JSON form, independent of key order."""
    text = json.dumps(as_json(settings), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested JSON settings as {"optimizer.learning_rate": 0.001, …}."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    rows: dict[str, Any] = {}
    for key, value in settings.items():
        rows |= flat(value, f"{prefix}.{key}" if prefix else key)
    return rows


def process_index() -> int:
    """Rank of this process as its launcher tells it; JAX, which is not started yet, is not asked."""
    for name in RANK_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def write(run_dir: pathlib.Path, record: dict[str, Any], config: str, operative: str) -> list[str]:
    """Write the three files; returns one line per setting that differs from the record found there.

    An earlier record that differs is kept under the next free number (config.1.gin, …). Errors: StorageError.
    """
    files = {
        "config.gin": config,
        "operative_config.gin": operative,
        "config.json": json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        changes = _changes(run_dir / "config.json", record)
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
        if name != "digest" and old.get(name, missing) != new.get(name, missing)
    ]


def _set_aside(run_dir: pathlib.Path, names: Any) -> None:
    number = 1
    while (run_dir / f"config.{number}.json").exists():
        number += 1
    for name in names:
        stem, _, suffix = name.partition(".")
        if (run_dir / name).exists():
            (run_dir / name).replace(run_dir / f"{stem}.{number}.{suffix}")
