"""Scores of answers, for PPO, GRPO and `jinstr score`: reward models, checks, Python functions and servers, weighed.

    REWARD=runs/reward                             a reward model's run directory, or RUN_DIR@STEP
    REWARD=number                                  1 where the answer gives the number of the prompt's line, else 0
    REWARD=constraints                             share of the line's constraints that hold
    REWARD=my_rewards:polite                       a function(prompt, answer, row) of the user's (`rewards_worker`)
    REWARD=http://127.0.0.1:8000/score             a server (`rewards_http`)
    REWARD="runs/reward*1.0,my_rewards:polite*0.5" a weighted sum

What cannot be scored has NaN, and so has the sum where any part of it has: NaN means that an answer is left out, it
never becomes 0. N answers.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jinstr import errors
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import (
    outcomes,
    reward_model,
    reward_parts,
    rewards_http,
    rewards_pool,
    rewards_worker,
)

ON_ERROR = ("nan", "stop")
LONG_WORK = 1000  # answers from which on a model that scores them shows its progress
_MOST_CUT = 3  # a character that lacks a byte decodes to at most so many U+FFFD


class Asked(NamedTuple):
    """One answer to be scored."""

    messages: tuple[dict, ...]  # the prompt, as roles and contents
    answer: str  # without control tokens
    row: dict  # the fields of the prompt's line: reference answer, constraints, genre …
    ended: bool  # False: cut off at the longest length


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What scores answers, and how patiently it is asked."""

    reward: str  # see the module's docstring
    timeout: float = 30.0  # seconds for one call of a function, one request to a server
    retries: int = 3  # so often a request is made again
    workers: int = 0  # processes for functions; 0 = one per core
    # An exception of a function, or a request that failed for good: "nan" leaves the answer out, "stop" ends the run.
    on_error: str = "nan"
    http_batch: int = 32  # answers in one request
    http_connections: int = 4  # requests at the same time
    backoff: float = 0.5  # seconds before the second request; doubled after each, varied by half

    def __post_init__(self):
        wanted = {
            "reward": (bool(self.reward.strip()), "the name of one"),
            "timeout": (0 < self.timeout < math.inf, "seconds above 0"),
            "retries": (self.retries >= 0, "0 or more"),
            "workers": (self.workers >= 0, "0 (one per core) or more"),
            "on_error": (self.on_error in ON_ERROR, " or ".join(ON_ERROR)),
            "http_batch": (self.http_batch >= 1, "1 or more"),
            "http_connections": (self.http_connections >= 1, "1 or more"),
            "backoff": (0 <= self.backoff < math.inf, "seconds from 0 on"),
        }
        for name, (is_right, words) in wanted.items():
            if not is_right:
                value = getattr(self, name)
                raise errors.ConfigError("JI-REWARDS-010", f"{name} = {value!r}: give {words}")


class Scored(NamedTuple):
    """What one reward made of N answers."""

    scores: np.ndarray  # f32 [N]
    faults: dict[str, int]  # fault of outcomes.FAULTS → answers
    notes: tuple[str, ...] = ()  # for people: the first fault of each kind
    versions: tuple[str, ...] = ()  # of a server, since it was opened


class Reward(NamedTuple):
    """One part of the sum."""

    name: str
    weight: float
    score: Callable[[Sequence[Asked]], Scored]
    close: Callable[[], Any]
    waits: bool  # for other processes, so that it may be asked from a thread of its own


class Scores(NamedTuple):
    """What all rewards made of N answers."""

    total: np.ndarray  # f32 [N]: the weighted sum; NaN = to be left out
    by_name: dict[str, np.ndarray]  # name of a reward → its own scores, f32 [N], before weighing
    faults: dict[str, dict[str, int]]  # name → fault → answers
    versions: dict[str, tuple[str, ...]]  # name of a server → its versions since it was opened
    cut: int  # answers whose last character was cut off and is not scored
    notes: tuple[str, ...]  # for people: what went wrong


def row_id(asked: Asked, number: int) -> str:
    """The id of the prompt's line, or the number of the answer."""
    return str(asked.row.get("id", asked.row.get("ID", number)))


def open_rewards(
    config: RewardConfig,
    module: str = "",
    mesh=None,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
    kinds: Sequence[str] = reward_parts.KINDS,
) -> list[Reward]:
    """Open all that REWARD names: models are read, functions imported in processes of their own.

    module: where functions without a module are (":polite"). mesh: that models lie on in parts; without one they are on
    the first device. kinds: of parts, those that are opened. Errors: ConfigError for what is not there or cannot be
    imported; StorageError for a model that cannot be read.
    """
    parts = [p for p in reward_parts.read(config.reward, module) if p.kind in kinds]
    functions = [part.text for part in parts if part.kind == "function"]
    found = []
    with contextlib.ExitStack() as stack:
        pool = None
        if functions:
            pool = rewards_pool.Pool(functions, config.workers or _cores(), config.timeout)
            stack.callback(pool.close)
        for part in parts:
            if part.kind == "function":
                found.append(_function(part, pool, config))
            elif part.kind == "http":
                found.append(_server(part, config))
            else:
                found.append(_model(part, mesh, rules))
        stack.pop_all()
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _failed(name: str, asked: Sequence[Asked], stops: bool) -> Callable[[int, str], None]:
    """What is done about an error: nothing, or the end of the run."""

    def failed(number: int, text: str) -> None:
        if stops:
            where = row_id(asked[number], number)
            raise errors.DataError("JI-REWARDS-015", f"reward {name}, row {where}: {text}")

    return failed


def _collected(name: str, asked: Sequence[Asked], found: Sequence[outcomes.Outcome]) -> Scored:
    faults = collections.Counter(outcome.fault for outcome in found if outcome.fault)
    notes = []
    for fault, count in faults.items():
        number = next(n for n, outcome in enumerate(found) if outcome.fault == fault)
        text = f": {found[number].text}" if found[number].text else ""
        where = f"the first at row {row_id(asked[number], number)}"
        notes.append(f"reward {name}: {fault}, {count} of {len(found)} answers, {where}{text}")
    scores = np.array([outcome.score for outcome in found], np.float32)
    return Scored(scores, dict(faults), tuple(notes))


def _function(part: reward_parts.Part, pool: rewards_pool.Pool, config: RewardConfig) -> Reward:
    # A line without what a built-in check needs is wrong data: it has no score whatever the answer is.
    stops = config.on_error == "stop" or part.text in rewards_worker.BUILT_IN

    def score(asked: Sequence[Asked]) -> Scored:
        calls = [(part.text, list(a.messages), a.answer, a.row) for a in asked]
        return _collected(part.name, asked, pool.run(calls, _failed(part.name, asked, stops)))

    return Reward(part.name, part.weight, score, pool.close, waits=True)


def _server(part: reward_parts.Part, config: RewardConfig) -> Reward:
    client = rewards_http.Client(
        part.text,
        rewards_http.HttpConfig(
            timeout=config.timeout,
            retries=config.retries,
            batch=config.http_batch,
            connections=config.http_connections,
            backoff=config.backoff,
        ),
    )

    def score(asked: Sequence[Asked]) -> Scored:
        items = [
            {
                "id": row_id(a, number),
                "messages": list(a.messages),
                "answer": a.answer,
                "row": a.row,
                "ended": a.ended,
            }
            for number, a in enumerate(asked)
        ]
        before = len(client.versions)
        failed = _failed(part.name, asked, config.on_error == "stop")
        scored = _collected(part.name, asked, client.score(items, failed))
        notes, versions = scored.notes, tuple(client.versions)
        if before < len(versions) > 1:
            notes += (f"reward {part.name}: its version changed: {' → '.join(versions)}",)
        return scored._replace(notes=notes, versions=versions)

    return Reward(part.name, part.weight, score, client.close, waits=True)


def _model(part: reward_parts.Part, mesh, rules: mesh_lib.AxisRules) -> Reward:
    model = reward_model.load(part.text, mesh=mesh, rules=rules)

    def score(asked: Sequence[Asked]) -> Scored:
        texts = [[*a.messages, {"role": "assistant", "content": a.answer}] for a in asked]
        values = reward_model.score(model, texts, progress=len(texts) > LONG_WORK)
        return _collected(part.name, asked, [outcomes.of(float(value)) for value in values])

    return Reward(part.name, part.weight, score, lambda: None, waits=False)


def without_cut_character(asked: Asked) -> Asked:
    """An answer that was cut off within a character, without the U+FFFD that the rest of it became."""
    kept = asked.answer.rstrip("\ufffd")
    if asked.ended or not 0 < len(asked.answer) - len(kept) <= _MOST_CUT:
        return asked
    return asked._replace(answer=kept)


def score_models(rewards: Sequence[Reward], asked: Sequence[Asked]) -> dict[str, Scored]:
    """What the models among the rewards say, by name."""
    whole = [without_cut_character(a) for a in asked]
    return {reward.name: reward.score(whole) for reward in rewards if not reward.waits}


def score(
    rewards: Sequence[Reward],
    asked: Sequence[Asked],
    by_models: dict[str, Scored] | None = None,
) -> Scores:
    """The scores of N answers: the weighted sum f32 [N], NaN where any reward gave none, and what it is made of.

    by_models: of score_models, if it was called before. Servers and functions are asked at the same time, models
    meanwhile in this thread. Errors: DataError where a line lacks what a reward needs, and with on_error="stop" for the
    first that fails.
    """
    whole = [without_cut_character(a) for a in asked]
    waiting = [reward for reward in rewards if reward.waits]
    threads = concurrent.futures.ThreadPoolExecutor(max(1, len(waiting)))
    try:
        futures = {reward.name: threads.submit(reward.score, whole) for reward in waiting}
        found = score_models(rewards, asked) if by_models is None else dict(by_models)
        for future in concurrent.futures.as_completed(futures.values()):
            future.result()  # the first error ends it
        found |= {name: future.result() for name, future in futures.items()}
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    total = np.zeros(len(whole), np.float64)
    for reward in rewards:
        total += reward.weight * found[reward.name].scores.astype(np.float64)
    total[np.abs(total) > np.finfo(np.float32).max] = np.nan
    ordered = {reward.name: found[reward.name] for reward in rewards}
    return Scores(
        total.astype(np.float32),
        {name: scored.scores for name, scored in ordered.items()},
        {name: scored.faults for name, scored in ordered.items()},
        {name: scored.versions for name, scored in ordered.items() if scored.versions},
        sum(a is not b for a, b in zip(asked, whole)),
        tuple(note for scored in ordered.values() for note in scored.notes),
    )


def metrics(scores: Scores) -> dict[str, float]:
    """reward/mean, std, nan_rate and constant of the sum, reward/<name>/… of each reward, as rates of the N answers.

    mean and std (of the population) are those of the answers with a score, and are left out where there is none.
    constant is 1 where all of at least two scores are equal: nothing can be learned from them. cut_rate: answers that
    ended within a character.
    """
    count = max(1, len(scores.total))
    found = _spread("reward", scores.total) | {"reward/cut_rate": scores.cut / count}
    for name, values in scores.by_name.items():
        found |= _spread(f"reward/{name}", values)
        for fault in outcomes.FAULTS:
            found[f"reward/{name}/{fault}_rate"] = scores.faults[name].get(fault, 0) / count
        if name in scores.versions:
            found[f"reward/{name}/versions"] = float(len(scores.versions[name]))
    return found


def _spread(prefix: str, values: np.ndarray) -> dict[str, float]:
    finite = values[~np.isnan(values)].astype(np.float64)
    found = {f"{prefix}/mean": finite.mean(), f"{prefix}/std": finite.std()} if len(finite) else {}
    found[f"{prefix}/nan_rate"] = np.isnan(values).sum() / max(1, len(values))
    found[f"{prefix}/constant"] = float(len(finite) > 1 and (finite == finite[0]).all())
    return {name: float(value) for name, value in found.items()}


def close(rewards: Sequence[Reward]) -> None:
    """End the processes and requests of all rewards; may be called again."""
    for reward in rewards:
        reward.close()
