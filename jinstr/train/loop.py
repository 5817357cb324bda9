"""The supervised loop that `pretrain` and `sft` share: step, log, evaluate, save."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

from jinstr import errors
from jinstr.parallel import together
from jinstr.testing import faults
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import flops as flops_lib
from jinstr.train import metrics as metrics_lib
from jinstr.train import progress as progress_lib
from jinstr.train import replicas, stopping, storage, watchdog
from jinstr.train import trace as trace_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, and what to do on the way."""

    num_steps: int = 0  # steps; 0 = from epochs
    epochs: float = 0.0  # passes over the data; 0 = from num_steps
    microbatches: int = 1  # gradient accumulation: parts a batch is computed in
    log_every: int = 10  # steps between lines in metrics.jsonl
    eval_every: int = 200  # steps between held-out evaluations; 0 = only at the end
    profile: str = ""  # "10:15" writes a trace of steps 10 to 15 to RUN_DIR/profile
    log_examples: bool = False  # RUN_DIR/examples.jsonl: ids and digest of every batch
    max_nonfinite: int = (
        3  # steps in a row whose loss or gradient is not finite, after which the run stops
    )
    spike_factor: float = 10.0  # gradient norms above so many medians are written down; 0 = none
    skip_steps: str = ""  # "120,300:305": steps whose batch is left out
    replica_check_every: int = (
        100  # steps between comparisons of the copies of parameters; 0 = never
    )
    stall_seconds: float = 0.0  # without progress before the run ends with 124; 0 = by the phase
    tensorboard: bool = True
    wandb: str = ""  # project name; "" = off


def planned_steps(config: LoopConfig, steps_per_epoch: float) -> int:
    """Number of steps of the whole run. Errors: ConfigError unless exactly one of num_steps, epochs is set."""
    if bool(config.num_steps) == bool(config.epochs):
        raise errors.ConfigError(
            "JI-LOOP-001",
            f"set either NUM_STEPS or EPOCHS (num_steps={config.num_steps}, epochs={config.epochs})",
        )
    return config.num_steps or max(1, math.ceil(config.epochs * steps_per_epoch))


def skipped_steps(text: str) -> frozenset[int]:
    """Steps named as "120,300:305", both ends included. Errors: ConfigError."""
    found: set[int] = set()
    for word in filter(None, text.replace(" ", "").split(",")):
        first, _, last = word.partition(":")
        last = last or first
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise errors.ConfigError(
                "JI-LOOP-006", f"SKIP_STEPS={text!r}: {word!r} is not a step or first:last"
            )
        found.update(range(int(first), int(last) + 1))
    return frozenset(found)


def _evaluates(config: LoopConfig, step: int, num_steps: int) -> bool:
    """Is the model evaluated after this step?"""
    return step == num_steps or bool(config.eval_every and step % config.eval_every == 0)


def _owed(run_dir, step: int) -> bool:
    """Was the evaluation of a step left out, because a signal or a kill came before it?"""

    def look() -> bool:
        lines = metrics_lib.read_lines(pathlib.Path(run_dir) / "metrics.jsonl")
        return not any(
            line["step"] == step and any(name.startswith("eval/") for name in line)
            for line in lines
        )

    return together.first_decides("owed", look)


def _kept(state: dict) -> dict:
    """What a checkpoint holds of the state; its step is the checkpoint's number."""
    return {name: value for name, value in state.items() if name != "step"}


class _Pending:
    """Metrics of steps that were dispatched and not read yet; reading them writes the lines that are due."""

    def __init__(self, config: LoopConfig, run_dir, start_step, num_steps, meter, writer, bar):
        self._config, self._run_dir = config, run_dir
        self._start_step, self._num_steps = start_step, num_steps
        self._meter, self._writer, self._bar = meter, writer, bar
        self._steps: list[tuple[int, dict, Callable[[], dict], Callable[[], list]]] = []
        self._since = time.monotonic()
        self._norms: collections.deque[float] = collections.deque(maxlen=128)
        self._refused = 0  # in a row

    def add(self, step: int, values: dict, extra: Callable, examples: Callable) -> None:
        """extra, examples: called when the step is read, for more of its line and for what was in its batch."""
        self._steps.append((step, values, extra, examples))

    def drain(self) -> None:
        """Wait for the steps and count them. Errors: NonFiniteError after max_nonfinite refused steps in a row."""
        for step, values, extra, examples in self._steps:
            values = {name: float(value) for name, value in values.items()}
            self._meter.add(values)
            line = {"train/tokens": self._meter.tokens_seen}
            if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                counted = ("weight", "tokens", "square")
                line |= {f"train/{name}": v for name, v in values.items() if name not in counted}
                self._accepted(step, values, examples)
            else:
                self._refuse(step, values, examples)
            if step == self._start_step + 1:  # its time is that of compiling
                line["train/first_step_seconds"] = time.monotonic() - self._since
                self._writer.write(step, line | extra())
                self._meter.start()
            elif step % self._config.log_every == 0 or step == self._num_steps:
                speed = self._meter.read()
                line |= {f"train/{name}": value for name, value in speed.items()}
                self._writer.write(step, line | extra())
                self._bar.update(step, loss=values["loss"], **speed)
        self._steps.clear()

    def _accepted(self, step: int, values: dict, examples: Callable) -> None:
        """A finite step; gradient norms far beyond the usual are written down. Only finite ones make the usual."""
        self._refused = 0
        norm, factor = values["grad_norm"], self._config.spike_factor
        usual = statistics.median(self._norms) if len(self._norms) >= 20 else math.inf
        if factor and norm > factor * usual:
            storage.incident(
                self._run_dir,
                step,
                "spike",
                f"gradient norm {norm:.3g}, usually {usual:.3g}; look: jinstr replay RUN_DIR={self._run_dir} "
                f"STEP={step}",
                loss=values["loss"],
                examples=examples(),
            )
        self._norms.append(norm)

    def _refuse(self, step: int, values: dict, examples: Callable) -> None:
        """A step that the device refused. Errors: NonFiniteError when it was one too many."""
        self._refused += 1
        found = f"loss={values['loss']}, grad_norm={values['grad_norm']}"
        storage.incident(
            self._run_dir,
            step,
            "non-finite",
            f"{found}; the update was left out, parameters and moments are as before",
            examples=examples(),
        )
        if self._refused >= self._config.max_nonfinite:
            raise errors.NonFiniteError(
                "JI-LOOP-002",
                f"step {step}: {found}, the last of {self._refused} such steps in a row; lower LEARNING_RATE, or look "
                f"at the batches, named in incidents.jsonl: jinstr replay RUN_DIR={self._run_dir} STEP={step}",
            )


class _Acts:
    """What a run does besides steps: look at the model, save it, end early."""

    def __init__(self, config: LoopConfig, num_steps: int, **parts):
        """parts: those of `fit` by name, and its pending metrics, bar and watchdog."""
        self._config, self._num_steps = config, num_steps
        self._evaluate, self._check_replicas = parts["evaluate"], parts["check_replicas"]
        self._checkpointer, self._writer = parts["checkpointer"], parts["writer"]
        self._run_json, self._meter = parts["run_json"], parts["meter"]
        self._pending, self._bar, self._watch = parts["pending"], parts["bar"], parts["watch"]
        self._signals = stopping.current()

    def look(self, state: dict, step: int) -> None:
        """Evaluate. Errors: stopping.Asked when a signal came meanwhile."""
        self._pending.drain()
        self._watch.beat("evaluate")
        with self._meter.paused(), self._signals.during("evaluate"):
            faults.point("evaluate", step)
            results = self._evaluate(state, step)
        self._writer.write(step, results)
        if results:
            self._bar.note(step, results)

    def save(self, state: dict, step: int) -> None:
        """Start a save of a state whose copies agree. Errors: PeerError, StorageError."""
        self._pending.drain()
        self._watch.beat("save")
        self._check_replicas(state["params"], step)
        with self._meter.paused():
            self._checkpointer.save(step, _kept(state), self._run_json(step))

    def after(self, state: dict, step: int) -> None:
        """What is due after a step."""
        self._checkpointer.check()
        every = self._config.replica_check_every
        if every and step % every == 0:
            self._check_replicas(state["params"], step)
        if self._signals.asked() and step < self._num_steps:
            self.end_early(state, step)
        if self._checkpointer.is_due(step) or step == self._num_steps:
            self.save(state, step)
        if _evaluates(self._config, step, self._num_steps):
            self.look(state, step)

    def end_early(self, state: dict, step: int) -> NoReturn:
        """Save, if there is time, and raise PreemptedError."""
        grace = self._checkpointer.config.grace_seconds
        taken = together.first_decides("save_seconds", lambda: self._checkpointer.save_seconds)
        if grace and taken > grace:
            self._checkpointer.wait()
            told = (
                f"the last save took {taken:.1f} s, longer than GRACE_SECONDS={grace:g}, so step {step} is not saved; "
                "the same command goes on from the checkpoint before"
            )
        else:
            self.save(state, step)
            self._checkpointer.wait()
            told = f"saved step {step}; the same command goes on there"
        raise errors.PreemptedError("JI-LOOP-004", f"{self._signals.name}: {told}")


def fit(
    *,
    run_dir,
    config: LoopConfig,
    state: dict,
    step_function: Callable[[dict, dict], tuple[dict, dict]],
    batches: Iterator[tuple[int, dict]],
    place: Callable[[dict], dict],
    start_step: int,
    num_steps: int,
    evaluate: Callable[[dict, int], dict[str, float]],
    check_replicas: Callable[[dict, int], None],
    checkpointer: checkpoint_lib.Checkpointer,
    writer: metrics_lib.MetricsWriter,
    run_json: Callable[[int], dict],
    meter: flops_lib.Meter,
    examples: Callable[[int], list],
    extra: Callable[[int], dict] = lambda step: {},
) -> dict:
    """Train from `start_step` to `num_steps` and return the last state.

    A step is dispatched before the metrics of the last one are read, so the device never waits. `step` in files is the
    number of updates done. `evaluate(state, step)` runs every `eval_every` steps and at the end; `extra(step)` adds
    host-side values (learning rate, mixture shares) to a log line; `examples(step)` names what was in the batch after
    `step` steps.
    Errors: NonFiniteError when too many steps in a row were not finite; StorageError for a save that failed;
    PeerError when copies of parameters differ; PreemptedError when a signal asked to stop, after a save.
    """
    skipped = skipped_steps(config.skip_steps)
    signals = stopping.current()
    bar = progress_lib.Progress(num_steps, start_step)
    trace = trace_lib.Trace(config.profile, run_dir)
    pending = _Pending(config, run_dir, start_step, num_steps, meter, writer, bar)
    done = start_step
    with watchdog.Watchdog(config.stall_seconds) as watch, signals.during("step"):
        acts = _Acts(
            config, num_steps,
            evaluate=evaluate, check_replicas=check_replicas, checkpointer=checkpointer, writer=writer,
            run_json=run_json, meter=meter, pending=pending, bar=bar, watch=watch,
        )  # fmt: skip
        try:
            # Trained before, or ended before it was looked at.
            owed = _evaluates(config, done, num_steps) and _owed(run_dir, done)
            if done >= num_steps or (done and owed):
                acts.look(state, done)
            # Cut here, not by a break: nothing is read, or logged as trained on, beyond the last step.
            for step, batch in itertools.islice(batches, max(0, num_steps - start_step)):
                phase = "compile" if step == start_step else "step"
                trace.before(step)
                watch.beat(phase, step)
                if step + 1 in skipped:
                    state = _skip(state, run_dir, step + 1, examples(step))
                else:
                    with signals.during(phase):
                        faults.point(phase, step + 1)
                        state, values = step_function(state, place(batch))
                    pending.drain()
                    pending.add(step + 1, values, partial(extra, step + 1), partial(examples, step))
                done = step + 1
                if done == start_step + 1:
                    pending.drain()
                state = _with_faults(state, done)
                acts.after(state, done)
        except stopping.Asked:
            acts.end_early(state, done)
        pending.drain()
        trace.close()
        watch.beat("save")
        checkpointer.wait()
    bar.close()
    return state


def _skip(state: dict, run_dir, step: int, examples: list) -> dict:
    """The state after a step that is left out: nothing but its number moves on."""
    storage.incident(run_dir, step, "skipped", "named in SKIP_STEPS", examples=examples)
    return state | {"step": state["step"] + 1}


def _with_faults(state: dict, step: int) -> dict:
    """The state with the bit that a test wants flipped in one copy of a parameter."""
    if step in faults.planned("flip_replica"):
        return state | {"params": replicas.flipped(state["params"])}
    return state
