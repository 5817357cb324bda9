"""The questions that a policy practises on, in an order that is a closed-form function of seed and number."""

from __future__ import annotations

import dataclasses
import glob
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np
import xxhash

from jinstr import errors
from jinstr.data import formats, prepared, selection
from jinstr.decode import requests
from jinstr.text import render


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Where questions come from, and which are kept aside."""

    prompts: (
        str  # JSONL files (glob, comma separated): messages | prompt | instruction, input | text
    )
    holdout: float = 0.05  # share of the questions kept for evaluation
    longest: int = 256  # tokens of the longest prompt; longer ones are left out and counted
    exclude: str = ""  # file of ids or questions, one a line, that are left out everywhere


class Prompt(NamedTuple):
    """One question."""

    id: str
    messages: tuple[dict, ...]
    ids: np.ndarray  # token ids, up to where the answer begins
    row: dict  # the fields of its line, for rewards


class Prompts(NamedTuple):
    """Questions to practise on, and those kept aside."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    identity: dict  # what a checkpoint keeps, to tell whether the questions are the same later
    left_out: int  # longer than `longest`


def load(config: PromptConfig, tokenizer, template, seed: int) -> Prompts:
    """Read, render, split. Errors: DataError naming file and line; ConfigError when nothing is left."""
    paths = [path for part in config.prompts.split(",") for path in sorted(glob.glob(part.strip()))]
    if not paths:
        raise errors.ConfigError("JI-PROMPTS-001", f"PROMPTS={config.prompts}: no such file")
    barred = selection.read_list(config.exclude)
    found, too_long, seen = [], 0, set()
    for path in paths:
        for number, row in requests.read_rows(path):
            roles, contents = requests.prompt_of(row, f"{path}:{number}")
            messages = tuple({"role": r, "content": c} for r, c in zip(roles, contents))
            name = str(row.get("id", row.get("ID", f"{pathlib.Path(path).name}:{number}")))
            question = formats.prompt_group(roles, contents)
            whole = tuple(zip(roles, map(formats.group_of, contents)))
            if whole in seen or barred & {formats.group_of(name), question}:
                continue  # asked once is enough: every pass asks it again
            seen.add(whole)
            ids = np.array(render.render_prompt(list(messages), template, tokenizer), np.int32)
            if len(ids) > config.longest:
                too_long += 1
                continue
            found.append(Prompt(name, messages, ids, row))
    aside = [
        _share(seed, formats.prompt_group(*_turns(p.messages))) < config.holdout for p in found
    ]
    train = tuple(prompt for prompt, is_aside in zip(found, aside) if not is_aside)
    held_out = tuple(prompt for prompt, is_aside in zip(found, aside) if is_aside)
    if not train:
        raise errors.ConfigError(
            "JI-PROMPTS-002",
            f"PROMPTS={config.prompts}: no question is left to practise on ({len(held_out)} held out, {too_long} "
            f"longer than PROMPT_LENGTH={config.longest} tokens)",
        )
    files = {path: prepared.file_digest(pathlib.Path(path)) for path in paths}
    ids = xxhash.xxh3_64(b"".join(prompt.ids.tobytes() for prompt in train)).hexdigest()
    return Prompts(train, held_out, {"files": files, "ids": ids, "count": len(train)}, too_long)


def _turns(messages: Sequence[dict]) -> tuple[list[str], list[str]]:
    return [m["role"] for m in messages], [m["content"] for m in messages]


def _share(seed: int, question: str) -> float:
    """A number in [0, 1) that a question always gets."""
    return xxhash.xxh3_64_intdigest(f"{seed}\0{question}".encode()) / 2**64


def numbers(count: int, first: int, wanted: int, seed: int) -> list[int]:
    """`wanted` numbers of questions (0 to count − 1) from the `first`-th of an endless sequence on: every pass over
    them is another permutation."""
    found = []
    for place in range(first, first + wanted):
        passes, within = divmod(place, count)
        key = xxhash.xxh3_64_intdigest(f"{seed}\0prompts\0{passes}".encode()) & 0x7FFFFFFF
        found.append(
            grain.experimental.index_shuffle(within, max_index=count - 1, seed=key, rounds=4)
        )
    return found
