"""dataset_info.json of LLaMA-Factory: its data sets as sources of a run, and what of them has no counterpart.

The shape of the file is documented in data/README.md of hiyouga/LLaMA-Factory.
"""

from __future__ import annotations

import pathlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinstr import errors, settings
from jinstr.data import formats

RESULTS = "results"  # what is trained is not the same without it
NONE = "none"  # changes no result
ACT = "act"  # somebody must do something first, or the run is refused


class Note(NamedTuple):
    """A key that is not taken over as it stands: why, and what that changes."""

    key: str
    why: str
    effect: str  # RESULTS | NONE | ACT


_ENTRY_KEYS = {  # key of an entry → its type
    "file_name": str,
    "hf_hub_url": str,
    "ms_hub_url": str,
    "om_hub_url": str,
    "script_url": str,
    "cloud_file_name": str,
    "formatting": str,
    "ranking": bool,
    "subset": str,
    "split": str,
    "folder": str,
    "revision": str,
    "num_samples": int,
    "columns": dict,
    "tags": dict,
}
_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_OF_THE_HUB = ("subset", "split", "folder", "revision")
_NO_COLUMN = {  # columns that jinstr reads from no row
    "history": (
        "earlier turns in a column of their own are not read; write them as messages",
        RESULTS,
    ),
    "system": (
        "a system text in a column of its own is not read; write it as the first message",
        RESULTS,
    ),
    "tools": ("tool descriptions are not read, and rows with tool calls are refused", RESULTS),
    "images": ("jinstr trains on text only", RESULTS),
    "videos": ("jinstr trains on text only", RESULTS),
    "audios": ("jinstr trains on text only", RESULTS),
    "kto_tag": (
        "a mark of good and bad answers is not read: bad ones would be learned too",
        RESULTS,
    ),
    "chosen": ("comparisons are no answers to learn from", RESULTS),
    "rejected": ("comparisons are no answers to learn from", RESULTS),
}
_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}


def source(
    info: Mapping[str, Any], name: str, *, file: str, folder: pathlib.Path, is_text: bool
) -> tuple[dict[str, Any], list[Note]]:
    """Fields of a SourceConfig for the data set `name`, and what of its entry is not taken over.

    info: content of `file` (dataset_info.json); folder: where its files are; is_text: the stage reads documents.
    Errors: ConfigError naming file and key for an entry that is not there, or of wrong types, or that the stage cannot
    train on.
    """
    entry = _checked(info, name, file)
    notes = [
        Note(f"{name}.{key}", "not a key that is known here", RESULTS)
        for key in entry
        if key not in _ENTRY_KEYS
    ]
    entry, shape = _openai(entry), entry.get("formatting", "alpaca")
    shape = "sharegpt" if shape == "openai" else shape
    if shape not in _COLUMNS:
        raise _error(file, f"{name}.formatting = {shape!r}; known: alpaca, sharegpt, openai")
    if entry.get("ranking"):
        raise _error(
            file, f"{name}.ranking = true: a set of comparisons, and this stage learns answers"
        )
    if is_text and shape != "alpaca":
        raise _error(
            file, f"{name}.formatting = {shape!r}: conversations, and stage: pt reads text"
        )
    fields = {"name": name} | _place(entry, name, folder, notes)
    columns = {
        key: _text(value, file, f"{name}.columns.{key}")
        for key, value in entry.get("columns", {}).items()
    }
    if is_text:
        column = columns.get("prompt", "instruction")
        fields |= {"format": "text", "fields": "" if column == "text" else f"text={column}"}
    elif shape == "alpaca":
        fields |= _alpaca(columns, name, notes)
    else:
        tags = {
            key: _text(value, file, f"{name}.tags.{key}")
            for key, value in entry.get("tags", {}).items()
        }
        fields |= _conversations(columns, tags, name, notes)
    known = _COLUMNS[shape]
    for column in columns:
        if column not in known and not is_text:
            why, effect = _NO_COLUMN.get(column, ("not a column that is known here", RESULTS))
            notes.append(Note(f"{name}.columns.{column}", why, effect))
    for part in filter(None, fields["fields"].split(",")):
        if part.count("=") != 1:
            raise _error(
                file,
                f"{name}.columns: a name with , or = in it cannot be given as FIELDS; rename the column",
            )
    if "num_samples" in entry:
        fields["limit"] = entry["num_samples"]
        notes.append(
            Note(f"{name}.num_samples", "the first so many examples, not a random choice", RESULTS)
        )
    return fields, notes


def _openai(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of the formatting "openai" with the names that this means; any other as it is."""
    if entry.get("formatting") != "openai":
        return entry
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    }
    return entry | {
        "tags": tags | entry.get("tags", {}),
        "columns": {"messages": "messages"} | entry.get("columns", {}),
    }


def _error(file: str, message: str) -> errors.ConfigError:
    return errors.ConfigError("JI-IMPORT-002", f"{file}: {message}")


def _text(value: Any, file: str, key: str) -> str:
    if not isinstance(value, str):
        raise _error(file, f"{key} = {reprlib.repr(value)} ({type(value).__name__}) is not text")
    return value


def _checked(info: Mapping[str, Any], name: str, file: str) -> dict[str, Any]:
    if name not in info:
        raise _error(file, f"no data set {name!r}{settings.did_you_mean(name, info)}")
    entry = info[name]
    if not isinstance(entry, dict):
        raise _error(file, f"{name} = {reprlib.repr(entry)} is not an object")
    entry = {key: value for key, value in entry.items() if value is not None}
    for key, kind in _ENTRY_KEYS.items():
        if key in entry and not settings.matches(entry[key], kind):
            found = type(entry[key]).__name__
            raise _error(
                file,
                f"{name}.{key} = {reprlib.repr(entry[key])} ({found}), but it is {kind.__name__}",
            )
    return entry


def _place(entry: Mapping[str, Any], name: str, folder: pathlib.Path, notes: list[Note]) -> dict:
    """Path and provenance; a set that lies elsewhere gets the path where it is to be put."""
    elsewhere = next((key for key in _ELSEWHERE if key in entry), "")
    path = folder / entry.get("file_name", f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.jsonl")
    provenance = (
        f"https://huggingface.co/datasets/{entry['hf_hub_url']}" if "hf_hub_url" in entry else ""
    )
    if elsewhere and not path.exists():
        why = f"jinstr downloads no data: put it to {path} first ({entry[elsewhere]})"
        notes.append(Note(f"{name}.{elsewhere}", why, ACT))
    elif not elsewhere and "file_name" not in entry:
        notes.append(Note(f"{name}.file_name", f"not given: put the data to {path} first", ACT))
    for key in _OF_THE_HUB:
        if key in entry:
            notes.append(
                Note(f"{name}.{key}", f"choose it when the data are downloaded: {entry[key]}", ACT)
            )
    if set(str(path)) & set("+*?["):
        notes.append(
            Note(
                f"{name}.file_name",
                "+ joins files and *, ?, [ choose several: rename the file",
                ACT,
            )
        )
    return {"path": str(path), "provenance": provenance}


def _alpaca(columns: Mapping[str, str], name: str, notes: list[Note]) -> dict:
    pairs = {known: columns.get(key, known) for key, known in _COLUMNS["alpaca"].items()}
    renamed = [f"{known}={column}" for known, column in pairs.items() if column != known]
    if columns and "query" not in columns:
        why = "not given, so LLaMA-Factory reads no second column; jinstr reads one that is called input"
        notes.append(Note(f"{name}.columns.query", why, RESULTS))
    else:
        why = "instruction and input are joined as TEMPLATE does it, not by one line break"
        notes.append(Note(f"{name}.columns.query", why, RESULTS))
    return {"format": "alpaca", "fields": ",".join(renamed)}


def _conversations(
    columns: Mapping[str, str], given: Mapping[str, str], name: str, notes: list[Note]
) -> dict:
    tags = _TAGS | given
    shapes = {("from", "value"): "sharegpt", ("role", "content"): "messages"}
    keys = tags["role_tag"], tags["content_tag"]
    for tag, role in _ROLES.items():
        if formats.ROLES.get(tags[tag], tags[tag]) != role:
            why = f"turns by {tags[tag]!r} are refused; rename the role to {role} in the file"
            notes.append(Note(f"{name}.tags.{tag}", why, ACT))
    for tag in given:
        if tag not in _TAGS:
            notes.append(Note(f"{name}.tags.{tag}", "not a tag that is known here", RESULTS))
        elif tag in ("observation_tag", "function_tag"):
            why = "conversations with tool calls are refused; ON_BAD=skip leaves them out, counted"
            notes.append(Note(f"{name}.tags.{tag}", why, RESULTS))
    if keys not in shapes:
        why = f"turns with the keys {keys[0]}, {keys[1]} are refused; rename them to role, content"
        notes.append(Note(f"{name}.tags.role_tag", why, ACT))
    shape = shapes.get(keys, "messages")
    column = columns.get("messages", "conversations")
    is_known = column == "conversations" or (column == "messages" and shape == "messages")
    wanted = "conversations" if shape == "sharegpt" else "messages"
    return {"format": shape, "fields": "" if is_known else f"{wanted}={column}"}


def names(value: Any, file: str, key: str) -> Sequence[str]:
    """The names of a comma-separated text or of a list. Errors: ConfigError."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise errors.ConfigError(
            "JI-IMPORT-003", f"{file}: {key} = {reprlib.repr(value)} names no data sets"
        )
    return [word.strip() for word in words if word.strip()]
