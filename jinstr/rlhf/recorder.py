"""The flight recorder of reinforcement learning: what is logged, what must hold, and what people are told in words.

Lines of metrics.jsonl carry names under rl/: objective (score, reward, KL), policy (the updates), gen (the answers),
reward (each of its parts), adv, time. Samples of each iteration that is looked at go to samples.jsonl.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
import time

import jax
import numpy as np
import tqdm

from jinstr import errors
from jinstr.rlhf import practice, rewards
from jinstr.train import metrics as metrics_lib
from jinstr.train import storage

# |mean ratio - 1| that rounding explains in the first update on fresh answers, by the type that is computed in.
RATIO_ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2}

MOST_REFUSED = 3  # updates in a row that are not finite, after which a run ends


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """When a run is to end because it has gone wrong, and how much of it people see."""

    max_kl: float = (
        0.0  # nats of an answer; more in `patience` iterations in a row stop the run; 0 = no limit
    )
    min_ended: float = (
        0.0  # share of answers that end by themselves; less stops the run; 0 = no limit
    )
    patience: int = 3
    samples: int = 4  # answers of an evaluation that go to samples.jsonl


def check_separate(reference: dict, *others: dict) -> None:
    """The reference shares no buffer with other parameters. Errors: ConfigError: the two would move together."""
    mine = _buffers(reference)
    if mine & set().union(*map(_buffers, others)):
        raise errors.ConfigError(
            "JI-RL-001",
            "policy and reference lie in the same memory: the KL between them would always be 0",
        )


def _buffers(params: dict) -> set[int]:
    return {
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(params)
        for shard in leaf.addressable_shards
        if shard.data.size
    }


def evaluates(config: practice.PracticeConfig, iteration: int) -> bool:
    """Is the policy evaluated after this iteration? Also before the first one (0) and after the last one."""
    due = config.eval_every and iteration % config.eval_every == 0
    return bool(due or iteration in (0, config.iterations))


def owes_evaluation(run_dir: pathlib.Path, config: practice.PracticeConfig, iteration: int) -> bool:
    """Is the evaluation after this iteration still to be made, as a signal or a kill came before it?"""
    lines = metrics_lib.read_lines(pathlib.Path(run_dir) / "metrics.jsonl")
    return evaluates(config, iteration) and not any(
        line["step"] == iteration and "eval/ended" in line for line in lines
    )


class Recorder:
    """Of one run; `start` marks phases, `iteration` and `evaluated` write what came of them."""

    def __init__(
        self,
        run_dir: pathlib.Path,
        iterations: int,
        done: int,
        limits: LimitConfig,
        compute_dtype: str,
        *,
        before: dict,
        tensorboard: bool,
        wandb: str,
    ):
        """done: iterations of a run that goes on; its files are cut back to them. before: what `state` said then."""
        self._run_dir, self._limits = run_dir, limits
        self._writer = metrics_lib.MetricsWriter(
            run_dir, tensorboard=tensorboard, wandb=wandb, start_step=done
        )
        self._rounding = RATIO_ROUNDING[compute_dtype]
        self._phases: dict[str, float] = {}
        self._phase, self._since = "", time.monotonic()
        self._beyond = before.get("beyond", 0)  # iterations in a row beyond a limit
        # updates in a row whose loss or gradient was not finite
        self._refused = before.get("refused", 0)
        self._told: set[str] = set(before.get("told", ()))
        self._first_entropy: float | None = before.get("first_entropy")
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=iterations,
            initial=done,
            unit="iteration",
            disable=self._plain,
            dynamic_ncols=True,
        )
        self._iterations = iterations

    def state(self) -> dict:
        """What a run that goes on must know of the iterations before: goes into the checkpoint, as JSON."""
        return {
            "beyond": self._beyond,
            "refused": self._refused,
            "told": sorted(self._told),
            "first_entropy": self._first_entropy,
        }

    def start(self, phase: str) -> None:
        """A phase of the iteration begins."""
        now = time.monotonic()
        if self._phase:
            self._phases[self._phase] = self._phases.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    def iteration(
        self,
        number: int,
        written: practice.Written,
        found: rewards.Scores,
        rewarded: np.ndarray,
        kl: np.ndarray,
        entropy: np.ndarray,
        old_logp: np.ndarray,
        updates: list[dict[str, float]],
        extra: dict[str, float],
    ) -> None:
        """Write what an iteration did, check what must hold, and tell what looks wrong.

        rewarded, kl: f32 [E], what was maximised and the KL of each answer from the reference, nats. entropy and
        old_logp: f32 [E, N], by the trainer's forward. updates: what each update returned.
        Errors: JinstrError when the run is beyond its limits, its updates are not finite, or the first is not what it
        must be.
        """
        self.start("")
        mask = written.mask
        lengths = mask.sum(1)
        finite = np.isfinite(rewarded)
        seen = mask & finite[:, None]
        tokens = int(seen.sum()) or math.nan  # of no token there is no mean
        mismatch = np.abs(np.where(seen, old_logp - written.rollout_logp, 0.0))
        line = practice.facts_of(written, found.total) | extra
        line |= {
            "objective/rlhf_reward": _mean(rewarded[finite]),
            "objective/kl_seq": _mean(kl[finite]),
            "objective/kl_token": float(kl[finite].sum() / tokens),
            "objective/entropy": float(np.where(seen, entropy, 0).sum() / tokens),
            "policy/mismatch_mean": float(mismatch.sum() / tokens),
            "policy/mismatch_max": float(mismatch.max()) if seen.any() else math.nan,
        }
        line |= rewards.metrics(found)
        if updates:
            names = [n for n in updates[0] if n not in ("weight", "tokens", "square")]
            sound = [u for u in updates if _is_finite(u)]
            line |= {f"policy/{name}": _mean([u[name] for u in sound]) for name in names}
            line["policy/refused"] = float(len(updates) - len(sound))
            line["policy/ratio_change_first"] = updates[0].get("ratio_change", math.nan)
        seconds = dict(self._phases)
        line |= {f"time/{phase}": value for phase, value in seconds.items() if phase}
        line["gen/tokens_per_second"] = float(
            lengths.sum() / max(1e-9, seconds.get("rollout", 0.0))
        )
        self._phases = {}
        self._writer.write(number, practice.finite_only({f"rl/{k}": v for k, v in line.items()}))
        self._show(number, line)
        for note in found.notes:
            self._tell(number, note, note)
        self._diagnose(number, line, kl[finite])
        self._check_finite(number, updates)
        self._check_first(number, updates)
        self._limit(number, line)

    def evaluated(self, number: int, written: practice.Written, scores: np.ndarray) -> None:
        """Write the scores of held-out questions, and a few answers."""
        facts = practice.facts_of(written, scores)
        finite = scores[np.isfinite(scores)]
        error = float(finite.std(ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else math.nan
        line = {
            "eval/score": facts["objective/score"],
            "eval/score_standard_error": error,
            "eval/ended": facts["gen/ended"],
            "eval/length_mean": facts["gen/length_mean"],
            "eval/distinct_2": facts["gen/distinct_2"],
        }
        line = practice.finite_only(line)
        self._writer.write(number, line)
        self._note(f"iteration {number}: " + "  ".join(f"{k} {v:.4f}" for k, v in line.items()))
        for sample in practice.sample_lines(written, scores, self._limits.samples):
            self._writer.write_scored_sample(number, sample)

    def close(self) -> None:
        self._bar.close()
        self._writer.close()

    def _show(self, number: int, line: dict[str, float]) -> None:
        text = (
            f"score {line['objective/score']:.3f}  KL {line['objective/kl_seq']:.3f}  "
            f"length {line['gen/length_mean']:.1f}  ended {line['gen/ended']:.0%}"
        )
        if self._plain:
            print(f"iteration {number}/{self._iterations}  {text}", flush=True)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(number - self._bar.n)

    def _note(self, text: str) -> None:
        if self._plain:
            print(text, flush=True)
        else:
            tqdm.tqdm.write(text)

    def _tell(self, number: int, kind: str, text: str) -> None:
        """Once for each kind."""
        if kind not in self._told:
            self._told.add(kind)
            storage.incident(self._run_dir, number, "rl", text)

    def _diagnose(self, number: int, line: dict[str, float], kl: np.ndarray) -> None:
        """What the numbers mean, in words."""
        entropy = line["objective/entropy"]
        if self._first_entropy is None and math.isfinite(entropy):
            self._first_entropy = entropy
        first = entropy if self._first_entropy is None else self._first_entropy
        for kind, text in diagnoses(line, kl, first, 3 * self._rounding):
            self._tell(number, kind, text)

    def _check_finite(self, number: int, updates: list[dict[str, float]]) -> None:
        """The device refuses such updates, so a run of them would go on for ever and learn nothing."""
        for update in updates:
            self._refused = 0 if _is_finite(update) else self._refused + 1
            if not self._refused:
                continue
            told = f"loss={update['loss']}, grad_norm={update['grad_norm']}"
            storage.incident(
                self._run_dir, number, "non-finite",
                f"{told}; the update was left out, parameters and moments are as before",
            )  # fmt: skip
            if self._refused >= MOST_REFUSED:
                raise errors.NonFiniteError(
                    "JI-RL-004",
                    f"iteration {number}: {told}, the last of {self._refused} such updates in a row; lower "
                    "LEARNING_RATE, or look at the scores in samples.jsonl",
                )

    def _check_first(self, number: int, updates: list[dict[str, float]]) -> None:
        change = updates[0]["ratio_change"] if updates else 0.0
        if change > self._rounding:
            raise errors.ConfigError(
                "JI-RL-002",
                f"iteration {number}: in the first update the ratio of new and old policy is off 1 by {change:.2g} "
                f"on average (rounding explains {self._rounding:g}): old log-probabilities are of another policy, "
                "temperature or mask",
            )
        accepted = [u for u in updates if math.isfinite(u["loss"] + u["grad_norm"])]
        moved = any(u["ratio_change"] > 1e-6 for u in accepted[1:])  # less is rounding
        if len(accepted) == len(updates) > 1 and not moved:
            self._tell(
                number,
                "still",
                "the ratio stays at 1 in all later updates: nothing is learned (LEARNING_RATE?)",
            )

    def _limit(self, number: int, line: dict[str, float]) -> None:
        limits = self._limits
        found = []
        if limits.max_kl and line["objective/kl_seq"] > limits.max_kl:
            found.append(
                f"KL {line['objective/kl_seq']:.2f} nats is above MAX_KL={limits.max_kl:g}"
            )
        if limits.min_ended and line["gen/ended"] < limits.min_ended:
            found.append(f"{line['gen/ended']:.0%} of answers end, MIN_ENDED={limits.min_ended:g}")
        if line["reward/nan_rate"] >= 1:
            found.append("no answer has a score")
        self._beyond = self._beyond + 1 if found else 0
        if found and self._beyond >= limits.patience:
            raise errors.NonFiniteError(
                "JI-RL-003",
                f"iteration {number}: {'; '.join(found)}, the last of {self._beyond} in a row; metrics.jsonl shows "
                f"which checkpoint was good: go on from it with INIT={self._run_dir}@ITERATION and another RUN_DIR",
            )


def _is_finite(update: dict[str, float]) -> bool:
    return math.isfinite(update["loss"]) and math.isfinite(update["grad_norm"])


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def diagnoses(
    line: dict[str, float], kl: np.ndarray, first_entropy: float, rounding: float
) -> list[tuple[str, str]]:
    """(kind, text) of everything in an iteration's numbers that usually means trouble."""
    found = []

    def add(condition: bool, kind: str, text: str) -> None:
        if condition:
            found.append((kind, text))

    ended = line["gen/ended"]
    add(ended < 0.5, "ends", f"only {ended:.0%} of answers end by themselves: raise MAX_NEW_TOKENS, or set "
        "MISSING_END_VALUE so that endless answers cost")  # fmt: skip
    error = float(np.std(kl) / math.sqrt(len(kl))) if len(kl) else math.nan
    mean = _mean(kl)
    add(len(kl) > 8 and mean < -3 * error and mean < -1e-3, "negative KL",
        f"the KL from the reference is {mean:.3f} ± {error:.3f} nats, below 0: answers were not sampled from the "
        "policy that is scored (temperature, filters or masks differ)")  # fmt: skip
    add(line["reward/nan_rate"] > 0.1, "unscored",
        f"{line['reward/nan_rate']:.0%} of answers have no score and are left out")  # fmt: skip
    add(
        line["reward/constant"] == 1.0,
        "constant",
        "all scores are equal: nothing can be learned from them",
    )
    flat = line.get("adv/frac_zero_std", 0.0)
    add(flat > 0.9, "flat", f"in {flat:.0%} of the groups all answers score alike: the questions are too easy or too "
        "hard for the policy, or ANSWERS is too small")  # fmt: skip
    correlation = line["objective/score_length_correlation"]
    add(
        correlation > 0.7,
        "length",
        f"score and length correlate at {correlation:.2f}: the reward may pay for length",
    )
    add(line["objective/entropy"] < 0.1 * first_entropy, "entropy",
        "the entropy is below a tenth of what it was at first: the policy repeats itself; lower LEARNING_RATE or raise "
        "the KL weight")  # fmt: skip
    add(line["policy/mismatch_mean"] > rounding, "mismatch",
        f"sampler and trainer differ by {line['policy/mismatch_mean']:.2g} nats a token")  # fmt: skip
    return found
