"""Held-out evaluation during training: loss, bits per byte, choices among candidates, written answers.

B batch rows, T places.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import tqdm

from jinstr.data.eval_tasks import questions as questions_lib
from jinstr.decode import sampler as sampler_lib
from jinstr.decode import text as text_lib
from jinstr.losses import lm
from jinstr.models import decoder
from jinstr.testing import faults
from jinstr.text import render
from jinstr.train import state as state_lib
from jinstr.train import stopping, watchdog


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is looked at besides the loss on held-out data."""

    tasks: str = ""  # "[name=]file,seqio task,…": questions with known answers
    questions: int = 0  # of each task; 0 = all
    samples: int = (
        4  # held-out prompts (or sample_prompts) answered at every evaluation, into samples.jsonl
    )
    sample_prompts: tuple[str, ...] = ()  # texts to continue, for a model without a template
    max_new_tokens: int = 128  # longest answer
    temperature: float = 0.0  # of samples; 0 = greedy
    batch_rows: int = 16  # questions scored or answered at a time


def going_on() -> None:
    """Between two parts of an evaluation: it makes progress, and here it may be left."""
    watchdog.alive()
    faults.point("evaluate_part")
    stopping.check()


def loss_on(
    evaluator: Callable, params: dict, loader, mesh, rules, max_rows: int = 0
) -> dict[str, float]:
    """Loss and bits per byte over every row of a prepared set, each row once.

    loss: nats per unit of weight (per token, for text). bits_per_byte: nll / ln 2 / UTF-8 bytes of the text; the
    numerator includes the end-of-document tokens, the denominator does not, so it errs on the high side. It does not
    depend on the tokenizer, so runs with different vocabularies compare. With `max_rows` > 0 only about that many
    rows are read, and no bits per byte are given (the bytes are known for the whole set only).
    """
    nll = weight = 0.0
    whole = True
    rows = loader.config.batch_rows
    parts = loader.evaluation_batches(state_lib.places_here(mesh, rules, rows))
    for index, batch in enumerate(tqdm.tqdm(parts, desc="held out", leave=False, disable=None)):
        going_on()
        if max_rows and index * rows >= max_rows:
            whole = False
            break
        batch_nll, batch_weight = evaluator(params, state_lib.place_rows(batch, mesh, rules, rows))
        nll += float(batch_nll)
        weight += float(batch_weight)
    result = {"loss": nll / max(weight, 1e-8)}
    if whole and loader.bytes_total:
        result["bits_per_byte"] = nll / math.log(2) / loader.bytes_total
    return result


@functools.partial(jax.jit, static_argnums=0)
def _answer_logprobs(config, params, batch):
    """Sum of the log-probabilities of the marked targets of each row, nats, f32 [B]."""
    params = state_lib.cast_params(config, params)
    hidden_BTD = decoder.forward(
        config, params, batch["tokens"], batch["positions"], batch["segment_ids"]
    )
    logp_BT, _, _ = lm.token_logprobs(
        hidden_BTD, decoder.head_kernel(config, params), batch["targets"], config.logit_softcap
    )
    return (logp_BT * batch["loss_weights"]).sum(-1)


def _rows(rendered: Sequence[tuple[list[int], int]], pad_id: int, rows: int) -> dict:
    """[rows, T] arrays of (ids, length of the prompt) pairs; T is rounded up so that few shapes are compiled."""
    longest = max(len(ids) for ids, _ in rendered) - 1
    shape = (rows, -(-longest // 64) * 64)
    batch = {
        "tokens": np.full(shape, pad_id, np.int32),
        "targets": np.full(shape, pad_id, np.int32),
        "loss_weights": np.zeros(shape, np.float32),
        "positions": np.zeros(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
    }
    for row, (ids, prompt) in enumerate(rendered):
        size = len(ids) - 1
        batch["tokens"][row, :size], batch["targets"][row, :size] = ids[:-1], ids[1:]
        batch["loss_weights"][row, prompt - 1 : size] = 1.0
        batch["positions"][row, :size] = np.arange(size)
        batch["segment_ids"][row, :size] = 1
    return batch


def answer_logprobs(
    config, params, tokenizer, template, pairs: Sequence[tuple[Sequence[Mapping], str]], rows: int
) -> np.ndarray:
    """log p(answer and its end | messages) of each (messages, answer), nats, f64 [len(pairs)]."""
    rendered = []
    for messages, answer in pairs:
        ids = render.render(
            [*messages, {"role": "assistant", "content": answer}], template, tokenizer
        ).tokens
        rendered.append((ids, len(render.render_prompt(messages, template, tokenizer))))
    order = sorted(range(len(pairs)), key=lambda n: len(rendered[n][0]))
    found = np.zeros(len(pairs))
    for at in tqdm.tqdm(range(0, len(order), rows), desc="choices", leave=False, disable=None):
        going_on()
        some = order[at : at + rows]
        batch = _rows([rendered[n] for n in some], tokenizer.pad_id, rows)
        found[some] = np.asarray(_answer_logprobs(config, params, batch))[: len(some)]
    return found


def choose(config, params, tokenizer, template, task: questions_lib.EvalTask, rows: int) -> dict:
    """Share of questions whose likeliest candidate is the answer.

    accuracy: likeliest as a whole; accuracy_per_character: by log-probability per character, which does not favour
    short candidates (acc_norm of the Japanese evaluation harness); chance: of a uniform choice.
    """
    pairs = [(q.messages, text) for q in task.questions for text in q.candidates]
    logp = answer_logprobs(config, params, tokenizer, template, pairs, rows)
    lengths = np.array([max(1, len(text)) for _, text in pairs])
    hits = hits_per_character = at = 0
    for question in task.questions:
        here = slice(at, at + len(question.candidates))
        right = question.candidates.index(question.answer)
        hits += int(np.argmax(logp[here])) == right
        hits_per_character += int(np.argmax(logp[here] / lengths[here])) == right
        at = here.stop
    count = len(task.questions)
    return {
        "accuracy": hits / count,
        "accuracy_per_character": hits_per_character / count,
        "chance": task.chance,
    }


class Answers:
    """Written answers of a model whose parameters change: one compiled sampler for all evaluations."""

    def __init__(self, model, tokenizer, template, config: EvaluationConfig):
        self._arguments = (model, tokenizer, template)
        self._config = config
        self._sampler: text_lib.TextSampler | None = None
        self._setting = sampler_lib.SamplingConfig(
            temperature=config.temperature, max_new_tokens=config.max_new_tokens
        )

    def write(self, params, prompts: Sequence[Sequence[int]]) -> list[text_lib.Answer]:
        """The answers to prompts given as ids, in order. Too long prompts lose their beginning."""
        model, tokenizer, template = self._arguments
        if self._sampler is None:
            self._sampler = text_lib.TextSampler(model, params, tokenizer, template, self._setting)
        else:
            self._sampler.use(params)
        longest = self._sampler.longest_prompt
        prompts = [list(prompt)[-longest:] for prompt in prompts]
        rows = min(self._config.batch_rows, len(prompts))
        written = self._sampler.answer_all(prompts, range(len(prompts)), rows)
        found = {}
        for number, answer in tqdm.tqdm(
            written, desc="answers", total=len(prompts), leave=False, disable=None
        ):
            going_on()
            found[number] = answer
        self._sampler.forget()  # training goes on beside it
        return [found[number] for number in range(len(prompts))]

    def score(self, params, task: questions_lib.EvalTask) -> dict[str, float]:
        """The task's metrics over greedy answers, and the share of answers that ended by themselves."""
        _, tokenizer, template = self._arguments
        prompts = [render.render_prompt(q.messages, template, tokenizer) for q in task.questions]
        answers = self.write(params, prompts)
        targets = [question.answer for question in task.questions]
        results = {"ended": sum(answer.finish != "length" for answer in answers) / len(answers)}
        texts = [answer.text for answer in answers]
        if task.questions[0].values:
            results |= questions_lib.naming_accuracy(task.questions, texts)
            results["chance"] = task.chance
        else:
            for metric in task.metrics:
                results |= metric(targets, texts)
        return {name: float(value) for name, value in results.items()}


def chat_prompts(loader, count: int) -> list[list[int]]:
    """Prompt ids of the first conversations of a held-out set: what stands before their last answer."""
    found = []
    for record in loader.first_records(count):
        trained = np.flatnonzero(record.mask)
        # The last answer: its trained ids are the last run of neighbours.
        breaks = np.flatnonzero(np.diff(trained) > 1)
        start = trained[breaks[-1] + 1] if len(breaks) else trained[0]
        found.append(record.tokens[:start].tolist())
    return found
