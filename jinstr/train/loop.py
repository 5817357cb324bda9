"""The supervised loop that `pretrain` and `sft` share: step, log, evaluate, save."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Iterator

from jinstr import errors
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import flops as flops_lib
from jinstr.train import metrics as metrics_lib
from jinstr.train import progress as progress_lib
from jinstr.train import stopping
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


def _finite(step: int, values: dict) -> dict[str, float]:
    """The metrics of a step as floats, read from the device. Errors: NonFiniteError."""
    values = {name: float(value) for name, value in values.items()}
    if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
        raise errors.NonFiniteError(
            "JI-LOOP-002",
            f"step {step}: loss={values['loss']}, grad_norm={values['grad_norm']}; lower "
            f"LEARNING_RATE, or look at the batch: jinstr inspect … STEP={step - 1}",
        )
    return values


def _evaluates(config: LoopConfig, step: int, num_steps: int) -> bool:
    """Is the model evaluated after this step?"""
    return step == num_steps or bool(config.eval_every and step % config.eval_every == 0)


def _owed(run_dir, step: int) -> bool:
    """Was the evaluation of a step left out, because a signal or a kill came before it?"""
    lines = metrics_lib.read_lines(pathlib.Path(run_dir) / "metrics.jsonl")
    return not any(
        line["step"] == step and any(name.startswith("eval/") for name in line) for line in lines
    )


def _kept(state: dict) -> dict:
    """What a checkpoint holds of the state; its step is the checkpoint's number."""
    return {name: value for name, value in state.items() if name != "step"}


class _Pending:
    """Metrics of steps that were dispatched and not read yet; reading them writes the lines that are due."""

    def __init__(self, config: LoopConfig, start_step, num_steps, meter, writer, bar, extra):
        self._config, self._start_step, self._num_steps = config, start_step, num_steps
        self._meter, self._writer, self._bar, self._extra = meter, writer, bar, extra
        self._steps: list[tuple[int, dict]] = []
        self._since = time.monotonic()

    def add(self, step: int, values: dict) -> None:
        self._steps.append((step, values))

    def drain(self) -> None:
        """Wait for the steps and count them. Errors: NonFiniteError."""
        for step, values in self._steps:
            values = _finite(step, values)
            self._meter.add(values)
            line = {
                "train/loss": values["loss"],
                "train/grad_norm": values["grad_norm"],
                "train/tokens": self._meter.tokens_seen,
            }
            if step == self._start_step + 1:  # its time is that of compiling
                line["train/first_step_seconds"] = time.monotonic() - self._since
                self._writer.write(step, line | self._extra(step))
                self._meter.start()
            elif step % self._config.log_every == 0 or step == self._num_steps:
                speed = self._meter.read()
                line |= {f"train/{name}": value for name, value in speed.items()}
                self._writer.write(step, line | self._extra(step))
                self._bar.update(step, loss=values["loss"], **speed)
        self._steps.clear()


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
    checkpointer: checkpoint_lib.Checkpointer,
    writer: metrics_lib.MetricsWriter,
    run_json: Callable[[int], dict],
    meter: flops_lib.Meter,
    signals: stopping.Signals,
    extra: Callable[[int], dict] = lambda step: {},
) -> dict:
    """Train from `start_step` to `num_steps` and return the last state.

    A step is dispatched before the metrics of the last one are read, so the device never waits. `step` in files is the
    number of updates done. `evaluate(state, step)` runs every `eval_every` steps and at the end; `extra(step)` adds
    host-side values (learning rate, mixture shares) to a log line.
    Errors: NonFiniteError when loss or gradient norm is not finite (read one step late; nothing is saved after it);
    PreemptedError when a signal asked to stop, after a save.
    """
    bar = progress_lib.Progress(num_steps, start_step)
    trace = trace_lib.Trace(config.profile, run_dir)
    pending = _Pending(config, start_step, num_steps, meter, writer, bar, extra)
    # Trained before, or ended before it was looked at.
    owed = _evaluates(config, start_step, num_steps) and _owed(run_dir, start_step)
    if start_step >= num_steps or (start_step and owed):
        writer.write(start_step, evaluate(state, start_step))
    # Cut here, not by a break: nothing is read, or logged as trained on, beyond the last step.
    for step, batch in itertools.islice(batches, max(0, num_steps - start_step)):
        trace.before(step)
        state, values = step_function(state, place(batch))
        pending.drain()
        done = step + 1
        pending.add(done, values)
        if step == start_step:
            pending.drain()
        stops = bool(signals.name) and done < num_steps
        if checkpointer.is_due(done) or done == num_steps or stops:
            pending.drain()
            with meter.paused():
                checkpointer.save(done, _kept(state), run_json(done))
        if stops:
            checkpointer.wait()
            raise errors.PreemptedError(
                "JI-LOOP-004", f"{signals.name}: saved step {done}; the same command goes on there"
            )
        if _evaluates(config, done, num_steps):
            pending.drain()
            with meter.paused():
                results = evaluate(state, done)
                writer.write(done, results)
                bar.note(done, results)
    pending.drain()
    trace.close()
    checkpointer.wait()
    bar.close()
    return state
