"""The supervised loop that `pretrain` and `sft` share: step, log, evaluate, save."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator

from jinstr import errors
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import flops as flops_lib
from jinstr.train import metrics as metrics_lib
from jinstr.train import progress as progress_lib
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


def _kept(state: dict) -> dict:
    """What a checkpoint holds of the state; its step is the checkpoint's number."""
    return {name: value for name, value in state.items() if name != "step"}


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
    extra: Callable[[int], dict] = lambda step: {},
) -> dict:
    """Train from `start_step` to `num_steps` and return the last state.

    A step is dispatched before the metrics of the last one are read, so the device never waits. `step` in files is the
    number of updates done. `evaluate(state, step)` runs every `eval_every` steps and at the end; `extra(step)` adds
    host-side values (learning rate, mixture shares) to a log line.
    Errors: NonFiniteError when loss or gradient norm is not finite (read one step late; nothing is saved after it).
    """
    bar = progress_lib.Progress(num_steps, start_step)
    trace = trace_lib.Trace(config.profile, run_dir)
    pending: list[tuple[int, dict]] = []
    first_step = time.monotonic()

    def drain() -> None:
        """Read the metrics of dispatched steps and write a line when one is due."""
        for done, values in pending:
            values = _finite(done, values)
            meter.add(values)
            line = {
                "train/loss": values["loss"],
                "train/grad_norm": values["grad_norm"],
                "train/tokens": meter.tokens_seen,
            }
            if done == start_step + 1:  # its time is that of compiling
                line["train/first_step_seconds"] = time.monotonic() - first_step
                writer.write(done, line | extra(done))
                meter.start()
            elif done % config.log_every == 0 or done == num_steps:
                speed = meter.read()
                line |= {f"train/{name}": value for name, value in speed.items()}
                writer.write(done, line | extra(done))
                bar.update(done, loss=values["loss"], **speed)
        pending.clear()

    # Cut here, not by a break: nothing is read, or logged as trained on, beyond the last step.
    for step, batch in itertools.islice(batches, max(0, num_steps - start_step)):
        trace.before(step)
        state, values = step_function(state, place(batch))
        drain()
        pending.append((step + 1, values))
        if step == start_step:
            drain()
        done = step + 1
        if checkpointer.is_due(done) or done == num_steps:
            drain()
            with meter.paused():
                checkpointer.save(done, _kept(state), run_json(done))
        if done == num_steps or (config.eval_every and done % config.eval_every == 0):
            drain()
            with meter.paused():
                results = evaluate(state, done)
                writer.write(done, results)
                bar.note(done, results)
    drain()
    trace.close()
    checkpointer.wait()
    if start_step >= num_steps:  # trained before: look at it again, with today's settings
        writer.write(start_step, evaluate(state, start_step))
    bar.close()
    return state
