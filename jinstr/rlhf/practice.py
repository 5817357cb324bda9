"""What the iterations of PPO and GRPO are made of: writing and scoring answers, rows for the updates, what is logged.

E episodes (answers), N longest answer allowed, R rows, T places.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jinstr import errors
from jinstr.decode import sampler
from jinstr.decode import text as text_lib
from jinstr.losses import advantages, checks
from jinstr.models import lora
from jinstr.parallel import together
from jinstr.rlhf import experience, objectives, rewards, rewards_shared
from jinstr.rlhf import prompts as prompts_lib
from jinstr.rlhf import rollout as rollout_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class PracticeConfig:
    """How long to practise, and on how much at a time."""

    iterations: int  # of writing, scoring and updating
    prompts: int = 64  # questions of an iteration
    answers: int = 1  # answers to each
    epochs: int = 1  # passes over the answers of an iteration
    minibatches: int = 1  # updates in a pass
    microbatches: int = 1  # gradient accumulation: parts an update is computed in
    kl_reward: float = 0.0  # weight of log(policy / reference), taken off the reward
    missing_end: str = "subtract"  # subtract | override: what `missing_end_value` does to an answer that did not end
    missing_end_value: float = 0.0
    score_limit: float = 0.0  # scores are cut to ± this; 0 = as they are
    eval_every: int = 10  # iterations between evaluations; 0 = at the end
    eval_prompts: int = 64  # held-out questions that are answered
    stall_seconds: float = 0.0  # without progress before the run ends with 124; 0 = by the phase

    def __post_init__(self):
        checks.one_of("PracticeConfig.missing_end", self.missing_end, ("subtract", "override"))
        for field in ("iterations", "prompts", "answers", "epochs", "minibatches", "microbatches"):
            if getattr(self, field) < 1:
                raise errors.ConfigError(
                    "JI-PRACTICE-001",
                    f"PracticeConfig.{field} = {getattr(self, field)}; give 1 or more",
                )
        if self.minibatches > self.prompts * self.answers:
            raise errors.ConfigError(
                "JI-PRACTICE-002",
                f"MINIBATCHES={self.minibatches}: an iteration writes {self.prompts * self.answers} answers",
            )

    @property
    def updates(self) -> int:
        """Of one iteration."""
        return self.epochs * self.minibatches


EVALUATION = 1 << 30  # in place of an iteration, in the key of evaluations


class Written(NamedTuple):
    """Answers to the questions of an iteration: all to the first one, then all to the second …"""

    questions: list[prompts_lib.Prompt]  # E, each as often as it was answered
    episodes: list[experience.Episode]
    texts: list[str]
    rollout_logp: np.ndarray  # f32 [E, N], as the sampler said
    ended: np.ndarray  # bool [E]
    mask: np.ndarray  # bool [E, N]
    slot_share: float  # share of the decode slots that wrote a token


def write(
    model,
    params: dict,
    questions: Sequence[prompts_lib.Prompt],
    answers: int,
    key: jax.Array,
    *,
    rollout: rollout_lib.RolloutConfig,
    tokenizer,
    template,
    mesh,
    rules,
) -> Written:
    """Let the policy answer each question `answers` times. Noise goes by the iteration's key, question and number."""
    asked = [question for question in questions for _ in range(answers)]
    row_ids = noise_ids(asked)
    found = rollout_lib.rollout(
        model,
        params,
        [question.ids.tolist() for question in asked],
        row_ids,
        key,
        rollout_config=rollout,
        stop_ids=template.stop_ids,
        pad_id=tokenizer.pad_id,
        forbidden_ids=text_lib.forbidden_ids(model, tokenizer, dict(template.answer_tokens)),
        mesh=mesh,
        rules=rules,
    )
    longest = rollout.max_new_tokens
    episodes = [experience.Episode(q.ids, answer.ids) for q, answer in zip(asked, found.answers)]
    logp = np.zeros((len(asked), longest), np.float32)
    texts = []
    for number, answer in enumerate(found.answers):
        logp[number, : len(answer.ids)] = answer.logp
        kept = answer.ids[:-1] if answer.ended else answer.ids
        texts.append(text_of(kept, tokenizer, template))
    return Written(
        asked,
        episodes,
        texts,
        logp,
        np.array([answer.ended for answer in found.answers]),
        experience.answer_mask(episodes, longest),
        found.useful / max(1, found.slots),
    )


def noise_ids(asked: Sequence[prompts_lib.Prompt]) -> list[int]:
    """Keys of the noise of answers: the question's id and the number of the answer among all to that id.

    A question may come twice in an iteration (at the end of a pass, or in more questions than there are), and must not
    be answered alike then.
    """
    before: collections.Counter[str] = collections.Counter()
    found = []
    for question in asked:
        found.append(text_lib.row_id(question.id, before[question.id]))
        before[question.id] += 1
    return found


def text_of(ids: Sequence[int], tokenizer, template) -> str:
    """The text of an answer without its end token, as a reader sees it."""
    assembler = text_lib.Assembler(tokenizer.stream(), (), dict(template.answer_tokens))
    for token in map(int, ids):
        assembler.push(token)
    assembler.flush()
    return assembler.text.strip()


def score(opened: Sequence[rewards.Reward], written: Written) -> rewards.Scores:
    """Scores of all answers; NaN for those that are left out."""
    asked = [
        rewards.Asked(question.messages, text, question.row, bool(ended))
        for question, text, ended in zip(written.questions, written.texts, written.ended)
    ]
    return rewards_shared.score(opened, asked)


def minibatches(
    written: Written,
    kept: Sequence[int],
    config: PracticeConfig,
    seed: Sequence[int],
    *,
    longest_prompt: int,
    pad_id: int,
    devices: int,
) -> list[experience.Rows]:
    """The kept episodes in a random order, in `config.minibatches` parts of equal size and shape; [] without any."""
    if not len(kept):
        return []
    order = np.random.default_rng(list(seed)).permutation(np.asarray(kept))
    parts = np.array_split(order, config.minibatches)
    N = written.mask.shape[1]
    seq_len = row_places(longest_prompt + N)
    multiple = devices * config.microbatches
    settings = dict(seq_len=seq_len, pad_id=pad_id, multiple=multiple)
    packed = [experience.pack(written.episodes, part.tolist(), **settings) for part in parts]
    most = max(len(rows.batch["tokens"]) for rows in packed)
    alike = dict(
        seq_len=seq_len,
        pad_id=pad_id,
        num_rows=-(-few(most) // multiple) * multiple,
        answer_places=max(rows.batch["answer_places"].shape[1] for rows in packed),
    )
    return [experience.pack(written.episodes, part.tolist(), **alike) for part in parts]


def row_places(longest: int) -> int:
    """Places of a row that holds the longest episode. Where all answers are long, each place beyond it is computed for
    nothing, so short rows are cut finer than caches: by 32."""
    return -(-longest // 32) * 32 if longest <= 256 else sampler.cache_slots(longest)


def splitter(
    written: Written,
    scores: np.ndarray,
    config: PracticeConfig,
    seed: Sequence[int],
    *,
    longest_prompt: int,
    pad_id: int,
    devices: int,
) -> Callable[[int], list[experience.Rows]]:
    """epoch → its minibatches, of the answers that have a score. seed: of the run and the iteration."""
    kept = np.flatnonzero(np.isfinite(scores))
    fixed = dict(longest_prompt=longest_prompt, pad_id=pad_id, devices=devices)
    return functools.cache(
        lambda epoch: minibatches(written, kept, config, (*seed, epoch), **fixed)
    )


def few(count: int) -> int:
    """`count` rounded up in quarter steps of an octave, so that few shapes are compiled."""
    unit = max(1, 1 << max(0, count.bit_length() - 3))
    return -(-count // unit) * unit


def forward(
    function: Callable,
    parts: Sequence[experience.Rows],
    mask: np.ndarray,
    place: Callable,
    count: int,
) -> list[np.ndarray]:
    """What `function` (batch on the devices → `count` arrays [R, T]) says of every token of the answers: f32 [E, N]."""
    found = [np.zeros(mask.shape, np.float32) for _ in range(count)]
    for rows in parts:
        values = together.fetch(function(place(rows.batch)))
        for values_RT, into in zip(values, found, strict=True):
            experience.collect(rows, mask, values_RT, into)
    return found


def batch_of(rows: experience.Rows, mask: np.ndarray, arrays: dict[str, np.ndarray]) -> dict:
    """The rows with per-token arrays [E, N] spread over them."""
    spread = {name: experience.spread(rows, mask, values) for name, values in arrays.items()}
    return rows.batch | spread


def distinct(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of characters over all: near 0 where answers are all alike."""
    grams = collections.Counter(text[i : i + n] for text in texts for i in range(len(text) - n + 1))
    return len(grams) / max(1, sum(grams.values()))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, over finite values; NaN where one of them does not vary."""
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def facts_of(written: Written, scores: np.ndarray) -> dict[str, float]:
    """What is logged of the answers of an iteration: score, lengths, ends, variety."""
    lengths = written.mask.sum(1).astype(np.float64)
    finite = scores[np.isfinite(scores)].astype(np.float64)
    ended = lengths[written.ended]
    return {
        "objective/score": float(finite.mean()) if len(finite) else math.nan,
        "objective/score_std": float(finite.std()) if len(finite) else math.nan,
        "gen/length_mean": float(lengths.mean()),
        "gen/length_min": float(lengths.min()),
        "gen/length_max": float(lengths.max()),
        "gen/length_of_ended": float(ended.mean()) if len(ended) else math.nan,
        "gen/ended": float(written.ended.mean()),
        "gen/distinct_2": distinct(written.texts),
        "gen/slot_share": written.slot_share,
        "objective/score_length_correlation": correlation(scores, lengths),
    }


def floats(values: dict) -> dict[str, float]:
    """Numbers of an update, waited for."""
    return {name: float(value) for name, value in values.items()}


def finite_only(values: dict[str, float]) -> dict[str, float]:
    """Without NaN and infinities, which JSON has no words for: a missing number says the same."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def questions_of(
    prompts: prompts_lib.Prompts, iteration: int, count: int, seed: int
) -> list[prompts_lib.Prompt]:
    """The questions of an iteration."""
    numbers = prompts_lib.numbers(len(prompts.train), iteration * count, count, seed)
    return [prompts.train[number] for number in numbers]


def sample_lines(written: Written, scores: np.ndarray, count: int) -> Iterator[dict]:
    """The first answers of an iteration, as lines for people."""
    for number in range(min(count, len(written.texts))):
        value = float(scores[number])
        yield {
            "prompt": written.questions[number].messages[-1]["content"],
            "answer": written.texts[number],
            "ended": bool(written.ended[number]),
            "score": None if math.isnan(value) else round(value, 4),
            "tokens": int(written.mask[number].sum()),
        }


def assembled(config: PracticeConfig, scores: np.ndarray, written: Written) -> np.ndarray:
    """Scores with what a missing end costs, within the limit; f32 [E], NaN stays NaN."""
    paid = advantages.missing_eos(
        scores, written.ended, kind=config.missing_end, value=config.missing_end_value
    )
    if config.missing_end == "subtract" and not config.missing_end_value:
        paid = scores
    return np.asarray(
        advantages.clip_scores(paid, config.score_limit) if config.score_limit else paid
    )


def weights(rows: experience.Rows, trained: np.ndarray, reduction: str) -> dict[str, np.ndarray]:
    """ "weights" and "token_weights" [E, N] of one update, which sees the answers in these rows only."""
    mine = np.zeros_like(trained)
    mine[rows.episodes] = trained[rows.episodes]
    return {
        "weights": objectives.shares(mine, reduction),
        "token_weights": objectives.shares(mine, "dapo"),
    }


def on_mesh(jitted: Callable, mesh) -> Callable:
    """A jitted function, called with the mesh in context: for what models pin, and kernels that every device runs by
    itself. `.jitted` is the function alone."""

    def call(*arguments):
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            return jitted(*arguments)

    call.jitted = jitted
    return call


def make_logps(model, temperature: float, rules, mesh=None) -> Callable:
    """Jitted (parameters, batch, plain) → (log-probabilities, entropies) [R, T]; plain: as the reference."""

    def logps(params, batch, plain=False):
        if not plain:
            return objectives.token_logps(model, params, batch, temperature, rules)
        config = dataclasses.replace(lora.plain(model), heads="language")
        params = {name: tree for name, tree in params.items() if name != lora.SCORE}
        return objectives.token_logps(config, params, batch, temperature, rules)

    return on_mesh(jax.jit(logps, static_argnums=2), mesh)
