"""Written answers to benchmarks: greedy, up to a stop string or the end of the turn. What is written once is kept."""

from __future__ import annotations

from collections.abc import Sequence

import tqdm

from jinstr.decode import requests
from jinstr.decode import sampler as sampler_lib
from jinstr.decode import text as text_lib
from jinstr.train import serving

FINISHES = ("end", "stop", "length")


def write(
    run: serving.Run,
    template,
    prompts: dict[str, Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str],
    batch_rows: int,
    log: requests.AnswerLog,
) -> dict[str, dict]:
    """{"text", "finish", "tokens"} of the answer to every prompt, by its key.

    template: the chat template whose end of turn ends an answer; None = plain text, which ends at the end-of-text token
    or before one of the strings `stop`. log: answers that are there are not written again; new ones are added as each
    batch is finished.
    """
    sampling = sampler_lib.SamplingConfig(
        temperature=0.0, max_new_tokens=max_new_tokens, stop_strings=tuple(stop)
    )
    todo = [key for key in prompts if key not in log.answers]
    if todo:
        sampler = text_lib.TextSampler(run.config, run.params, run.tokenizer, template, sampling)
        rows = [text_lib.row_id(key) for key in todo]
        written = sampler.answer_all([prompts[key] for key in todo], rows, batch_rows)
        for number, answer in tqdm.tqdm(
            written, desc="answers", total=len(todo), leave=False, disable=None
        ):
            facts = {"text": answer.text, "finish": answer.finish, "tokens": len(answer.ids)}
            log.add({"key": todo[number]} | facts)
    return {key: log.answers[key] for key in prompts}
