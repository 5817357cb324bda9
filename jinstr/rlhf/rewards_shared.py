"""Rewards of a run of several processes: the first one asks them, once, and tells the others what they said.

So all go on with the same numbers, and a server is asked by one process. A reward model lies in parts on the devices of
all, so they open and ask it together.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import processes, together
from jinstr.rlhf import reward_parts, rewards


def open_rewards(
    config: rewards.RewardConfig, module: str, mesh, rules: mesh_lib.AxisRules
) -> list[rewards.Reward]:
    """`rewards.open_rewards`, in the first process; in the others the models only. Errors: its own."""
    if processes.count() == 1:
        return rewards.open_rewards(config, module, mesh, rules)
    models = rewards.open_rewards(config, module, mesh, rules, kinds=("model",))
    if processes.index():
        return models
    with together.alone():
        found = models + rewards.open_rewards(config, module, kinds=("function", "http"))
    names = [part.name for part in reward_parts.read(config.reward, module)]
    return sorted(found, key=lambda reward: names.index(reward.name))


def score(opened: Sequence[rewards.Reward], asked: Sequence[rewards.Asked]) -> rewards.Scores:
    """`rewards.score`, as the first process has it. Errors: its own, in the first process."""
    if processes.count() == 1:
        return rewards.score(opened, asked)
    by_models = rewards.score_models(opened, asked)

    def ask() -> dict:
        with together.alone():
            found = rewards.score(opened, asked, by_models)
        arrays = {name: _text(values) for name, values in found.by_name.items()}
        return found._asdict() | {"total": _text(found.total), "by_name": arrays}

    told = together.first_decides("scores", ask)
    arrays = {name: _array(text) for name, text in told["by_name"].items()}
    versions = {name: tuple(words) for name, words in told["versions"].items()}
    told |= {"total": _array(told["total"]), "by_name": arrays, "versions": versions}
    return rewards.Scores(**told | {"notes": tuple(told["notes"])})


def _text(values: np.ndarray) -> str:
    """Every bit of an f32 array, NaN too, as JSON has it."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
