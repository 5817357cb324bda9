"""A judge that jinstr runs itself: a RUN_DIR or a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jinstr.decode import requests
from jinstr.decode import sampler as sampler_lib
from jinstr.decode import text as text_lib
from jinstr.evaluate import judge_http
from jinstr.train import base as base_lib
from jinstr.train import serving


class Local:
    """Asks a model in this process. `identity` tells its weights from those of others in the same place."""

    def __init__(
        self, model: str, *, template: str, temperature: float, max_tokens: int, seed: int, batch_rows: int
    ):  # fmt: skip
        run = serving.load_run(model, template=template)
        sampling = sampler_lib.SamplingConfig(
            temperature=temperature, max_new_tokens=max_tokens, seed=seed
        )
        self._sampler = text_lib.TextSampler(*run[:4], sampling)
        self._batch_rows = batch_rows
        place = model if model.startswith("hf:") or "@" in model else f"{model}@{run.step}"
        self.identity = [base_lib.digest_of(place), template or base_lib.template_of(model)]

    def ask_each(
        self, asked: Sequence[Sequence[dict[str, str]]]
    ) -> Iterator[tuple[int, judge_http.Reply]]:
        """(number, reply) of every conversation, batch by batch; the fault "long" where the model has no room."""
        ids = [self._sampler.prompt_ids(messages) for messages in asked]
        longest = self._sampler.longest_prompt
        fitting = []
        for number, prompt in enumerate(ids):
            if len(prompt) <= longest:
                fitting.append(number)
                continue
            why = (
                f"{len(prompt)} tokens; the model reads {longest} and writes the rest of its places"
            )
            yield number, judge_http.Reply("", fault="long", why=why)
        rows = [text_lib.row_id(requests.digest(list(asked[number]))) for number in fitting]
        prompts = [ids[number] for number in fitting]
        for place, answer in self._sampler.answer_all(prompts, rows, self._batch_rows):
            tokens = len(prompts[place]) + len(answer.ids)
            yield fitting[place], judge_http.Reply(answer.text, finish=answer.finish, tokens=tokens)
