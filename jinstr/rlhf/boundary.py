"""Between the iterations of PPO and GRPO: where a run begins and goes on, and what is due after each one."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import processes, together
from jinstr.rlhf import practice, recorder, rewards
from jinstr.rlhf import prompts as prompts_lib
from jinstr.rlhf import rollout as rollout_lib
from jinstr.testing import faults
from jinstr.text import templates
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import base as base_lib
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import startup, stopping, summary, watchdog


class Policy(NamedTuple):
    """What is practised, not read yet."""

    base: base_lib.Base
    model: config_lib.DecoderConfig
    tokenizer: Any
    template: str  # its name or path
    chat: Any  # text.templates.Template


def open_policy(
    run_dir: pathlib.Path,
    init: str,
    heads: str,
    template: str,
    execution: config_lib.ExecutionConfig,
) -> Policy:
    """The policy that INIT names, with these heads. template: "" = as it was trained, else chatml."""
    base = startup.base_for(run_dir, init, heads)
    model = startup.with_adapters(run_dir, config_lib.executed(base.config, execution))
    tokenizer = tokenizer_lib.load(base.tokenizer_path)
    template = template or base.template or "chatml"
    return Policy(base, model, tokenizer, template, templates.load(template, tokenizer))


def open_prompts(
    config: prompts_lib.PromptConfig, policy: Policy, seed: int
) -> prompts_lib.Prompts:
    """The questions, and a line about how many there are. Errors: those of prompts.load."""
    found = prompts_lib.load(config, policy.tokenizer, policy.chat, seed)
    print(
        f"jinstr: {len(found.train):,} questions, {len(found.held_out):,} held out, {found.left_out:,} left out "
        f"(longer than {config.longest} tokens)"
    )
    return found


def make_write(
    policy: Policy, rollout: rollout_lib.RolloutConfig, devices, rules: mesh_lib.AxisRules
) -> Callable:
    """(parameters, questions, answers to each, key) → practice.Written."""
    return functools.partial(
        practice.write,
        policy.model,
        rollout=rollout,
        tokenizer=policy.tokenizer,
        template=policy.chat,
        mesh=devices,
        rules=rules,
    )


def identity(config: practice.PracticeConfig, rollout: rollout_lib.RolloutConfig) -> dict:
    """Settings that decide what an iteration reads and writes: with others, going on would be another run."""
    found = {
        name: getattr(config, name) for name in ("prompts", "answers", "epochs", "minibatches")
    }
    return found | {"temperature": rollout.temperature, "max_new_tokens": rollout.max_new_tokens}


def restore(
    checkpointer: checkpoint_lib.Checkpointer, abstract: dict, own: dict
) -> tuple[dict | None, int, dict]:
    """(state, iterations done, what run.json says of the practice) of the newest sound checkpoint; (None, 0, {}) for a
    new run.

    abstract: state with shardings; `step` is not kept. own: {"prompts", "config"} of this run.
    Errors: DataError when the questions are others; ConfigError when the settings of an iteration are.
    """
    iteration = checkpointer.start_step()
    if not iteration:
        return None, 0, {}
    where = f"{checkpointer.folder}: iteration {iteration}"
    saved = checkpointer.read_run_json(iteration).get("rl")
    if saved is None:
        raise errors.ConfigError(
            "JI-PRACTICE-005",
            f"{where} is of another command, not of jinstr ppo or grpo; choose another RUN_DIR (the model in it goes "
            "to INIT)",
        )
    if saved["config"] != own["config"]:
        changed = [n for n in own["config"] if saved["config"].get(n) != own["config"][n]]
        told = ", ".join(
            f"{n} was {saved['config'].get(n)}, now {own['config'][n]}" for n in changed
        )
        raise errors.ConfigError("JI-PRACTICE-003", f"{where}: {told}; choose another RUN_DIR")
    if saved["prompts"]["ids"] != own["prompts"]["ids"]:
        raise errors.DataError(
            "JI-PRACTICE-004",
            f"{where} practised on {saved['prompts']['count']:,} questions of {', '.join(saved['prompts']['files'])}; "
            f"these are others ({own['prompts']['count']:,}); put the old ones back, or choose another RUN_DIR",
        )
    state = checkpointer.restore(
        iteration, {name: abstract[name] for name in abstract if not name.endswith("step")}
    )
    updates = iteration * own["config"]["epochs"] * own["config"]["minibatches"]
    state["step"] = together.put(np.int32(updates), abstract["step"].sharding)
    print(f"jinstr: going on from iteration {iteration} in {checkpointer.folder}")
    return state, iteration, saved


def summarise(
    run_dir: pathlib.Path,
    title: str,
    policy: Policy,
    devices,
    config: practice.PracticeConfig,
    started: float,
) -> dict:
    """Write summary.json and the report at the end of a run; returns the summary."""
    facts = {"iterations": config.iterations, "wall_seconds": time.time() - started}
    return summary.write(
        run_dir,
        title=title,
        facts=startup.describe(policy.model, devices) | facts,
        data=[],
        previous=[policy.base.folder] if policy.base.is_run else [],
    )


@contextlib.contextmanager
def running(
    config: practice.PracticeConfig, checkpointer: checkpoint_lib.Checkpointer
) -> Iterator[watchdog.Watchdog]:
    """The iterations of a run: watched, and signals wait for the end of one."""
    with (
        watchdog.Watchdog(config.stall_seconds) as watch,
        stopping.current().during("step"),
        saved_before_the_end(checkpointer),
    ):
        yield watch


@contextlib.contextmanager
def saved_before_the_end(checkpointer: checkpoint_lib.Checkpointer) -> Iterator[None]:
    """Whatever error ends a practice, a save that is under way is finished first: Python's end would cut it off.

    Of several processes one may be gone, and with it the save."""
    try:
        yield
    except Exception:
        if processes.count() > 1:
            raise
        with contextlib.suppress(errors.JinstrError):  # the first error is the one to tell
            checkpointer.wait()
        raise


class Boundary:
    """What is due after an iteration: a save, the end that a signal asked for, an evaluation."""

    def __init__(
        self,
        config: practice.PracticeConfig,
        checkpointer: checkpoint_lib.Checkpointer,
        check_replicas: Callable[[dict, int], None],
        evaluate: Callable[[int], None],
        flight: recorder.Recorder,
        watch: watchdog.Watchdog,
        identity: dict,
        place: dict,
    ):
        self._config, self._checkpointer = config, checkpointer
        self._flight, self._watch = flight, watch
        self._check_replicas, self._evaluate = check_replicas, evaluate
        self._identity, self._place = identity, place
        self._signals = stopping.current()

    def before(self, run_dir: pathlib.Path, done: int) -> None:
        """Make up an evaluation that is owed, that before the first iteration too."""
        owed = functools.partial(recorder.owes_evaluation, run_dir, self._config, done)
        if together.first_decides("owed", owed):
            self._watch.beat("evaluate")
            self._evaluate(done)

    def phase(self, name: str, number: int) -> None:
        """A part of an iteration begins."""
        self._watch.beat(name, number)
        faults.point(name, number)
        self._flight.start(name)

    def passes(self, split: Callable[[int], Sequence], number: int) -> Iterator[tuple[int, Any]]:
        """(update of the iteration, from 0; rows) of all passes over the answers. split: practice.splitter."""
        for epoch in range(self._config.epochs):
            for part, rows in enumerate(split(epoch)):
                if not len(rows.episodes):  # fewer answers with a score than minibatches
                    continue
                update = epoch * self._config.minibatches + part
                self._watch.beat("update")
                faults.point(f"update_{update + 1}", number)
                yield update, rows

    def end(self, opened: Sequence[rewards.Reward]) -> None:
        """Wait for the last save, and close everything."""
        self._watch.beat("save")
        self._checkpointer.wait()
        self._checkpointer.close()
        rewards.close(opened)
        self._flight.close()

    def after(self, number: int, states: Sequence[dict], **rl) -> None:
        """states: the policy's, and others under names of their own, as they go into a checkpoint. rl: further numbers
        that a run needs to go on.

        Errors: PreemptedError after a signal, when everything is saved; PeerError, StorageError.
        """
        self._checkpointer.check()
        is_last = number == self._config.iterations
        asked_to_stop = bool(self._signals.asked(wait=True)) and not is_last
        if self._checkpointer.is_due(number) or is_last or asked_to_stop:
            self._watch.beat("save")
            self._check_replicas(states[0]["params"], number)
            # Updates done are known from the iteration.
            kept = {
                name: value
                for state in states
                for name, value in state.items()
                if not name.endswith("step")
            }
            rl |= {"recorder": self._flight.state()}
            about = {"rl": self._identity | rl, "data": {}, "meter": {}, "place": self._place}
            self._checkpointer.save(number, kept, about)
        if asked_to_stop:
            self._checkpointer.wait()
            raise errors.PreemptedError(
                "JI-LOOP-004",
                f"{self._signals.name}: saved iteration {number}; the same command goes on there",
            )
        if recorder.evaluates(self._config, number):
            self._watch.beat("evaluate")
            self._evaluate(number)
