"""Which tokens end an answer, as config.json and generation_config.json of a published model say it.

A chat model of others often has two: its end of turn and its end of text. Generation has to stop at each of them.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

GENERATION = "generation_config.json"
LENGTH = 512  # new tokens where neither the user nor the base says how many


def read(path: pathlib.Path) -> dict[str, Any]:
    """An object in a JSON file; {} where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _numbers(value: Any) -> list[int]:
    """eos_token_id: a number, a list of numbers, or nothing."""
    found = value if isinstance(value, list) else [value]
    return [id for id in found if type(id) is int and id >= 0]


def of_folder(folder: pathlib.Path | None) -> list[int]:
    """Every eos_token_id of a Hugging Face folder, those of generation_config.json first."""
    if folder is None:
        return []
    named = [read(folder / name).get("eos_token_id") for name in (GENERATION, "config.json")]
    return list(dict.fromkeys(id for value in named for id in _numbers(value)))


def special_ids(tokenizer, ends: list[int]) -> dict[str, Any]:
    """bos_token_id, eos_token_id and pad_token_id of config.json: a chat model ends with its end of turn.

    Where a tokenizer has nothing but text to pad with, none is named: others would take that text out of answers.
    """
    pad = tokenizer.pad_id
    pad = pad if pad == tokenizer.unk_id or tokenizer.is_control(pad) else -1
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends[0], "pad_token_id": pad}
    return {name: id if id >= 0 else None for name, id in ids.items()}


def kept(folder: pathlib.Path, ids: dict[str, Any]) -> dict[str, Any]:
    """`ids` with the eos_token_id of the config.json of a folder, one or several, where it has one."""
    own = _numbers(read(folder / "config.json").get("eos_token_id"))
    return ids | {"eos_token_id": _one_or_all(own)} if own else ids


def _one_or_all(ids: list[int]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else ids


def generation_config(
    ids: dict[str, Any], ends: list[int], max_new_tokens: int, base: dict[str, Any]
) -> dict[str, Any]:
    """generation_config.json: every id that ends an answer, and how the base samples, else greedy decoding.

    ids: those of config.json. max_new_tokens: 0 = that of the base, else LENGTH. base: the base's own file, or {}.
    """
    # transformers makes a file with this mark anew, from config.json.
    found = {name: value for name, value in base.items() if name != "_from_model_config"}
    found = ({} if found else {"do_sample": False}) | found
    for name in ("bos_token_id", "pad_token_id"):
        if found.get(name) is None:
            found[name] = ids[name]
    found["eos_token_id"] = _one_or_all(ends)
    if max_new_tokens or not (found.get("max_new_tokens") or found.get("max_length")):
        found["max_new_tokens"] = max_new_tokens or LENGTH
    return found
