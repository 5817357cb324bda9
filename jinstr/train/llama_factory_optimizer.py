"""Optimizer and learning rate of a LLaMA-Factory configuration as settings of jinstr."""

from __future__ import annotations

import math
from typing import Any

from jinstr.data.llama_factory import RESULTS, Note
from jinstr.train.llama_factory_keys import Reader, Setting

OPTIMIZER = "optimizer.OptimizerConfig"


def _warmup(read: Reader, notes: list[Note]) -> tuple[Setting | None, float | None]:
    """(WARMUP_STEPS, the share of the run that it is); None = not known, as the number of steps is not."""
    steps, ratio = read.get("warmup_steps", 0.0), read.get("warmup_ratio", 0.0)
    total = max(0, read.get("max_steps", -1))
    if 0 < steps < 1:  # transformers 5 takes a share here
        steps, ratio = 0.0, steps
    asked = steps / total if steps and total else ratio
    if asked > 0.1:
        why = f"{asked:.1%} of the run; jinstr warms up for at most a tenth of it"
        notes.append(Note("warmup_steps" if steps else "warmup_ratio", why, RESULTS))
    if steps:
        share = min(asked, 0.1) if total else None
        return Setting("WARMUP_STEPS", int(steps), "warmup_steps"), share
    if total or not ratio:
        sum_ = f"warmup_ratio {ratio:g} × {total:,} steps" if ratio else "no warm-up"
        return Setting("WARMUP_STEPS", math.ceil(ratio * total), sum_), min(ratio, 0.1)
    if ratio >= 0.1:
        why = "warmup_ratio: never more than a tenth of the run, which is what it asks for"
        return Setting("WARMUP_STEPS", 1_000_000, why), 0.1
    why = (
        f"the steps are not known yet: set WARMUP_STEPS to {ratio:g} × steps (jinstr prepare tells the steps of an "
        "epoch); until then it is the default, 100"
    )
    notes.append(Note("warmup_ratio", why, RESULTS))
    return None, ratio


def schedule(read: Reader, notes: list[Note]) -> list[Setting]:
    """SCHEDULE, WARMUP_STEPS, and how the learning rate ends."""
    kind = read.get("lr_scheduler_type", "linear")
    more = read.get("lr_scheduler_kwargs", {}, dict)
    warmup, share = _warmup(read, notes)
    found = [warmup] if warmup else []
    end = Setting(f"{OPTIMIZER}.final_share", 0.0, f"{kind} ends at 0")
    if kind == "cosine":
        return [Setting("SCHEDULE", "cosine", "lr_scheduler_type"), *found, end]
    if kind in ("constant", "constant_with_warmup"):
        if kind == "constant":
            found = [Setting("WARMUP_STEPS", 0, "constant has no warm-up")]
        return [Setting("SCHEDULE", "constant", "lr_scheduler_type"), *found]
    if kind == "linear":
        if share is None:
            why = "the warm-up's share of the run is not known, so the rate ends at that share of its peak, not at 0"
            notes.append(Note("lr_scheduler_type", why, RESULTS))
        decay = round(1 - (share or 0.0), 6)
        sum_ = f"linear: all that is not warm-up decays, 1 - {share or 0:g}"
        wsd = Setting("SCHEDULE", "wsd", "linear = warm up, then decay at once")
        return [wsd, *found, Setting(f"{OPTIMIZER}.decay_share", decay, sum_), end]
    rate = read.get("learning_rate", 5e-5)
    lowest = more.get(
        "min_lr_rate", more["min_lr"] / rate if _is_number(more.get("min_lr")) else None
    )
    if kind == "cosine_with_min_lr" and _is_number(lowest):
        end = end._replace(
            value=float(lowest), why="lr_scheduler_kwargs: lowest rate / learning_rate"
        )
        return [Setting("SCHEDULE", "cosine", "lr_scheduler_type"), *found, end]
    why = f"{kind} has no counterpart; the recipe takes cosine to 0"
    if kind == "warmup_stable_decay":
        why = "wsd decays over the last 20 % (decay_share); set it as lr_scheduler_kwargs asked"
    notes.append(Note("lr_scheduler_type", why, RESULTS))
    name = "wsd" if kind == "warmup_stable_decay" else "cosine"
    return [Setting("SCHEDULE", name, "lr_scheduler_type"), *found, end]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def optimizer(read: Reader, notes: list[Note]) -> list[Setting]:
    """The optimizer and its numbers."""
    kind = read.get("optim", "adamw_torch")
    if not kind.startswith(("adamw_torch", "adamw_hf", "adafactor")):
        notes.append(Note("optim", f"{kind} has no counterpart; the recipe takes adamw", RESULTS))
    name = "adafactor" if kind == "adafactor" else "adamw"
    return [
        Setting("OPTIMIZER", name, "optim"),
        Setting("LEARNING_RATE", read.get("learning_rate", 5e-5), "learning_rate"),
        *schedule(read, notes),
        Setting("WEIGHT_DECAY", read.get("weight_decay", 0.0), "weight_decay"),
        Setting("CLIP_NORM", read.get("max_grad_norm", 1.0), "max_grad_norm"),
        Setting(f"{OPTIMIZER}.beta1", read.get("adam_beta1", 0.9), "adam_beta1"),
        Setting(f"{OPTIMIZER}.beta2", read.get("adam_beta2", 0.999), "adam_beta2"),
        Setting(f"{OPTIMIZER}.epsilon", read.get("adam_epsilon", 1e-8), "adam_epsilon"),
    ]
