"""A past step of a run, computed again: what the run is made of, its state before a step, and the way there.

Nothing is written into the run, so another process may be training there. What a run was made of comes from its
arguments (config.json) and from model.json, tokenizer and template beside it; its batches from their step numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tqdm

from jinstr import errors
from jinstr.data import batching
from jinstr.data import dataset as dataset_lib
from jinstr.data import loader as loader_lib
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters, loop, metrics, model_files, startup
from jinstr.train import base as base_lib
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

# How far a loss may be from the logged one on other devices; bfloat16 keeps 8 bits.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


class Past(NamedTuple):
    """A run, ready to be computed again on the devices that are here."""

    run_dir: pathlib.Path
    settings: dict[str, Any]  # the arguments of its command
    model: config_lib.DecoderConfig
    tokenizer: Any  # text.tokenizer.Tokenizer
    loader: loader_lib.Loader
    mesh: jax.sharding.Mesh
    transform: Any  # optax.GradientTransformation
    abstract: dict
    frozen: dict  # the base, where adapters were trained; else {}
    step_function: Callable[[dict, dict], tuple[dict, dict]]
    checkpointer: checkpoint_lib.Checkpointer
    trained_at: dict  # startup.place_of when it was trained; {} where no checkpoint tells
    here: dict  # the same of this process

    @property
    def is_same_place(self) -> bool:
        """Must every bit be as it was?"""
        return self.trained_at == self.here

    @property
    def tolerance(self) -> float:
        """Largest relative difference of a loss that rounding explains; 0 at the same place."""
        return 0.0 if self.is_same_place else TOLERANCE[self.here["compute_dtype"]]


def open_run(run_dir: pathlib.Path, settings: dict[str, Any], num_devices: int) -> Past:
    """The run of RUN_DIR with the arguments of its command, on the first `num_devices` devices (0 = all).

    Errors: StorageError without model.json; those of preparing data that is not prepared here.
    """
    data_set = dataset_lib.load(
        settings["data"],
        tokenizer_path=model_files.tokenizer_path(run_dir),
        template=model_files.template_of(run_dir),
        prepare_config=settings["prepare"],
        seed=settings["seed"],
    )
    trained_at = _trained_at(run_dir)
    how = settings["model"] if "model" in settings else settings["execution"]
    own = base_lib.open_base(str(run_dir)).config
    model = startup.with_adapters(run_dir, dataclasses.replace(own, lora=how.lora))
    if trained_at:  # "auto" is another type on another device
        model = dataclasses.replace(model, compute_dtype=trained_at["compute_dtype"])
    optimizer, rules = settings["optimizer"], settings["rules"]
    num_steps = loop.planned_steps(settings["loop_config"], data_set.train.steps_per_epoch)
    devices = jax.devices()[: num_devices or None]
    mesh = mesh_for(settings["mesh"], data_set.train.config.batch_rows, model.hidden_size, devices)
    transform = optimizer_lib.make_optimizer(optimizer, num_steps)
    abstract = state_lib.abstract_state(
        model, transform, mesh, rules, ema=optimizer.ema_decay > 0, moments=optimizer.moments
    )
    record, frozen = adapters.read(run_dir), {}
    if record is not None:
        frozen = base_lib.recorded(record, run_dir).load(
            state_lib.abstract_frozen(model, mesh, rules)
        )
    step_function = state_lib.make_step(
        model,
        optimizer,
        transform,
        mesh,
        rules,
        abstract,
        settings["loop_config"].microbatches,
        frozen,
    )
    return Past(
        run_dir=run_dir,
        settings=settings,
        model=model,
        tokenizer=tokenizer_lib.load(model_files.tokenizer_path(run_dir)),
        loader=data_set.train,
        mesh=mesh,
        transform=transform,
        abstract=abstract,
        frozen=frozen,
        step_function=step_function,
        checkpointer=checkpoint_lib.Checkpointer(run_dir, checkpoint_lib.CheckpointConfig()),
        trained_at=trained_at,
        here=startup.place_of(model, mesh),
    )


def _trained_at(run_dir: pathlib.Path) -> dict:
    """Where the run was trained, as its newest readable checkpoint tells."""
    found = [p for p in run_dir.glob("checkpoints/*/run.json") if p.parent.name.isdigit()]
    for path in sorted(found, key=lambda path: int(path.parent.name), reverse=True):
        try:
            return json.loads(path.read_text("utf-8"))["place"]
        except (OSError, ValueError, KeyError):  # of an older version, damaged, or just deleted
            continue
    return {}


def mesh_for(
    config: mesh_lib.MeshConfig, rows: int, width: int, devices: list[jax.Device]
) -> jax.sharding.Mesh:
    """The run's own mesh where these devices can form it and share `rows`, else as many as rows divide over.

    Parameters (of `width`) are split in that other mesh where the run split them: it may not fit otherwise.
    """
    try:
        mesh = mesh_lib.make_mesh(config, devices)
        if rows % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0:
            return mesh
    except errors.ConfigError:
        pass
    if config.fsdp == 1:
        chosen = devices[: math.gcd(rows, len(devices))]
        return mesh_lib.make_mesh(mesh_lib.MeshConfig(), chosen)
    chosen = devices[: math.gcd(rows, width, len(devices))]
    return mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1, fsdp=-1), chosen)


def state_at(past: Past, up_to: int) -> tuple[dict, int]:
    """(state, its step) of the newest sound checkpoint at most at step `up_to`, or of the start of the run.

    Errors: ConfigError when the data is not what the checkpoint was trained on, or shapes differ.
    """
    while base := past.checkpointer.latest_verified(up_to):
        try:
            about = past.checkpointer.read_run_json(base)
            if about["data"]["fingerprint"] != past.loader.fingerprint:
                raise errors.ConfigError(
                    "JI-REPLAY-001",
                    f"{past.run_dir}: step {base} was trained on other data or batches than its settings give now; "
                    "put the files back that it was trained on",
                )
            wanted = {name: leaf for name, leaf in past.abstract.items() if name != "step"}
            state = past.checkpointer.restore(base, wanted)
        except (errors.StorageError, OSError, ValueError):
            if (past.checkpointer.folder / str(base)).exists():
                raise
            continue  # whoever trains there has just deleted it
        return state | {"step": _step_number(past, base)}, base
    origin = None
    if (init := past.settings["init"]) and not past.frozen:
        origin = base_lib.for_tokenizer(base_lib.open_base(init), past.tokenizer)
    seed = past.settings["seed"]
    return startup.first_state(past.model, past.transform, past.abstract, seed, origin), 0


def _step_number(past: Past, step: int) -> jax.Array:
    return jax.device_put(jnp.int32(step), past.abstract["step"].sharding)


def placed(past: Past, batch: dict) -> dict:
    """A batch of host arrays [B, T] on the devices."""
    return state_lib.place_batch(batch, past.mesh, past.settings["rules"])


def advance(past: Past, state: dict, base: int, last: int, seen: Callable) -> dict:
    """The state after step `last`, from that after `base`, which is donated; with a bar on a terminal.

    seen(step, batch, values): called after every step that was trained, in order.
    """
    skipped = loop.skipped_steps(past.settings["loop_config"].skip_steps)
    steps = itertools.islice(past.loader.iterate(base), last - base)
    bar = tqdm.tqdm(
        steps, total=last - base, unit="step", disable=not sys.stderr.isatty(), leave=False
    )
    for step, batch in bar:
        if step + 1 in skipped:
            state = state | {"step": _step_number(past, step + 1)}
        else:
            state, values = past.step_function(state, placed(past, batch))
            seen(step + 1, batch, values)
    return state


class Log:
    """What a run wrote down about its steps."""

    def __init__(self, run_dir: pathlib.Path):
        lines = metrics.read_lines(run_dir / "metrics.jsonl")
        # Every step that was trained has its tokens; its loss is missing where it was not finite.
        self.steps = {line["step"]: line for line in lines if "train/tokens" in line}
        examples = metrics.read_lines(run_dir / "examples.jsonl")
        self.digests = {line["step"]: line["digest"] for line in examples}


class Comparison:
    """Steps held against the log, as they come."""

    def __init__(self, past: Past, log: Log):
        self._log, self._tolerance = log, past.tolerance
        # With several processes each wrote the digest of its own part.
        self._knows_digests = past.trained_at.get("processes", 1) == 1
        self.steps = 0  # that the log has, of those that came
        self.equal = 0  # of these, to the last bit
        self.largest = 0.0  # relative difference of a loss or gradient norm
        self.digests = 0  # batches whose digest the log has
        self.problems: list[str] = []  # what differs by more than rounding

    def add(self, step: int, batch: dict, values: dict) -> None:
        """values: loss and grad_norm of `step`, on its batch of host arrays."""
        if self._knows_digests and step in self._log.digests:
            self.digests += 1
            if (found := batching.batch_digest(batch)) != self._log.digests[step]:
                told = f"step {step}: the digest of the batch is {found}"
                self.problems.append(f"{told}, logged {self._log.digests[step]}")
        if step not in self._log.steps:
            return
        pairs = compared(values, self._log.steps[step])
        self.steps += 1
        self.equal += all(pair["relative"] == 0 for pair in pairs.values())
        for name, pair in pairs.items():
            self.largest = max(self.largest, pair["relative"])
            if pair["relative"] > self._tolerance:
                told = f"step {step}: {name} is {pair['computed']!r}"
                self.problems.append(f"{told}, logged {pair['logged']!r}")

    def facts(self) -> dict:
        return {
            "steps": self.steps,
            "equal": self.equal,
            "largest": self.largest,
            "digests": self.digests,
            "problems": self.problems,
        }


def compared(values: dict, line: dict | None) -> dict[str, dict]:
    """{"loss", "grad_norm"} → {"computed", "logged", "relative" difference}; line: None for a step that was not logged.

    A step that was not finite has neither in its line; both being so counts as equal.
    """
    if line is None:
        return {
            name: {"computed": float(values[name]), "logged": None, "relative": None}
            for name in ("loss", "grad_norm")
        }
    found = {}
    finite = all(math.isfinite(float(values[name])) for name in ("loss", "grad_norm"))
    for name in ("loss", "grad_norm"):
        computed, logged = float(values[name]), line.get(f"train/{name}")
        if logged is None or not finite:
            relative = 0.0 if logged is None and not finite else math.inf
        else:
            relative = abs(computed - logged) / max(abs(logged), 1e-30)
        found[name] = {"computed": computed, "logged": logged, "relative": relative}
    return found


def bases(past: Past, last: int) -> list[int]:
    """Steps below `last` to start from, ascending: 0, and those of sound checkpoints."""
    found, step = [], past.checkpointer.latest_verified(last - 1)
    while step:
        found.append(step)
        step = past.checkpointer.latest_verified(step - 1)
    return [0, *reversed(found)]


def window_end(log: Log, base: int, length: int) -> int:
    """Last step of a window of at most `length` steps behind `base`: longer where no step in it was logged."""
    later = sorted(step for step in log.steps if step > base)
    within = [step for step in later if step <= base + length]
    return max(within) if within else later[0]
