"""Answers as text: prompts of unequal length in batches, end tokens, stop strings across token borders.

A batch and a stream go through the same `Assembler`, so both yield the same text.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from jinstr.decode import sampler as sampler_lib
from jinstr.models import config as config_lib
from jinstr.text import render

# Tokens written between two looks at the text for stop strings. Does not change any answer.
LOOK_EVERY = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One finished answer."""

    text: str
    ids: tuple[int, ...]  # tokens it was read from, without the end token
    finish: str  # end: an end token | stop: a stop string | length: max_new_tokens
    logp: float  # nats: sum over its tokens (the end token included) at the sampling temperature


class Assembler:
    """Turns token ids into text piece by piece, cut before the first stop string.

    texts: what control tokens read as that stand for text (`Template.answer_tokens`).
    """

    def __init__(self, stream, stop_strings: Sequence[str], texts: Mapping[int, str] | None = None):
        self._stream = stream  # tokenizer.stream()
        self._texts = texts or {}
        self._stops = tuple(stop_strings)
        self._held = ""  # text that may be the beginning of a stop string
        self.text = ""  # what has been emitted
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that is certain after this token; "" while a character or a stop string may be unfinished."""
        if self.stopped:
            return ""
        if token_id in self._texts:
            # No character goes across a control token: what is unfinished is dropped.
            return self._emit(self._stream.flush() + self._texts[token_id], final=False)
        return self._emit(self._stream.push(token_id), final=False)

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        return "" if self.stopped else self._emit(self._stream.flush(), final=True)

    def _emit(self, piece: str, final: bool) -> str:
        self._held += piece
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            certain = self._held[: min(found)]
        elif final:
            certain = self._held
        else:
            certain = self._held[: len(self._held) - self._doubtful()]
        self._held = self._held[len(certain) :]
        self.text += certain
        return certain

    def _doubtful(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        most = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(most, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0


def forbidden_ids(
    config: config_lib.DecoderConfig, tokenizer, texts: Mapping[int, str]
) -> tuple[int, ...]:
    """Ids that are no text: control tokens but those in `texts`, the unknown token, rows beyond the vocabulary."""
    known = [i for i in range(tokenizer.vocab_size) if i not in texts]
    control = [i for i in known if tokenizer.is_control(i) or i == tokenizer.unk_id]
    return (*control, *range(tokenizer.vocab_size, config.vocab_size))


def row_id(*parts) -> int:
    """A stable 31-bit id from anything printable: keys a row's noise to what it is, not to where it stands."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1


class TextSampler:
    """A model, a tokenizer, a template and a way of sampling, ready to answer.

    Without a template (None) the model continues plain text: see `prompt_ids`.
    """

    def __init__(self, config, params, tokenizer, template, sampling: sampler_lib.SamplingConfig):
        self.tokenizer, self.template, self.params = tokenizer, template, params
        self.sampling = sampling
        self.stop_strings = sampling.stop_strings
        stop_ids, self._texts = (tokenizer.eos_id,), {}
        if template is not None:
            self.stop_strings = (*sampling.stop_strings, *template.stop_strings)
            stop_ids, self._texts = template.stop_ids, dict(template.answer_tokens)
        forbidden = forbidden_ids(config, tokenizer, self._texts)
        self._sampler = sampler_lib.Sampler(config, sampling, stop_ids, tokenizer.pad_id, forbidden)
        self.use(params)
        # Prompt and answer together; a longer prompt is refused by the commands.
        self.longest_prompt = config.max_positions - sampling.max_new_tokens

    def use(self, params: dict) -> None:
        """Answer with these parameters from now on: the same shapes, nothing is compiled again."""
        self.params = params
        self._serving = self._sampler.serve(params)

    def forget(self) -> None:
        """Let go of the parameters and of their copy for steps until the next `use`: each is as large as the model."""
        self.params = self._serving = None

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation up to where the answer begins; without a template, of the last question alone."""
        if self.template is not None:
            return render.render_prompt(messages, self.template, self.tokenizer)
        question = messages[-2:] if messages[-1]["role"] == "input" else messages[-1:]
        text = "\n\n".join(turn["content"] for turn in question)
        begin = [self.tokenizer.bos_id] if self.tokenizer.bos_id >= 0 else []
        return [*begin, *self.tokenizer.encode(text)]

    def _assembler(self) -> Assembler:
        return Assembler(self.tokenizer.stream(), self.stop_strings, self._texts)

    def _start(self, prompts: Sequence[Sequence[int]], row_ids: Sequence[int]):
        prompts_BP, lengths_B = sampler_lib.left_pad(prompts, self.tokenizer.pad_id)
        return self._sampler.start(
            self.params,
            prompts_BP,
            lengths_B,
            np.array(row_ids, np.int32),
            jax.random.key(self.sampling.seed),
            self._serving,
        )

    def stream(self, prompt: Sequence[int], row: int = 0) -> Iterator[str]:
        """Pieces of one answer as they become certain. Together they are the `text` of `answer_batch`."""
        decoding = self._start([prompt], [row])
        assembler = self._assembler()
        fed, more = 0, True
        while True:
            rollout = jax.device_get(decoding.rollout())
            for token_id in rollout.ids[0, fed : _text_length(rollout, 0)]:
                if piece := assembler.push(int(token_id)):
                    yield piece
            if assembler.stopped or not more:
                break
            fed = decoding.written
            more = decoding.advance(fed + 1)
        if piece := assembler.flush():
            yield piece

    def answer_batch(
        self, prompts: Sequence[Sequence[int]], row_ids: Sequence[int], pad_rows: int = 0
    ) -> list[Answer]:
        """Answers of one batch, in order. `pad_rows` > len(prompts) adds rows that end at once (one compiled shape)."""
        count = len(prompts)
        extra = max(0, pad_rows - count)
        decoding = self._start([*prompts, *[prompts[0][:1]] * extra], [*row_ids, *[0] * extra])
        decoding.finish(np.arange(count + extra) >= count)
        assemblers = [self._assembler() for _ in prompts]
        used = [0] * count  # tokens of each row that its assembler has read
        more = True
        while more:
            if self.stop_strings:
                more = decoding.advance(decoding.written + LOOK_EVERY)
            else:
                more = decoding.advance(self.sampling.max_new_tokens)
            rollout = jax.device_get(decoding.rollout())
            for row, assembler in enumerate(assemblers):
                while used[row] < _text_length(rollout, row) and not assembler.stopped:
                    assembler.push(int(rollout.ids[row, used[row]]))
                    used[row] += 1
            stopped = [assembler.stopped for assembler in assemblers]
            decoding.finish(np.array(stopped + [True] * extra))
            more = more and not decoding.done.all()
        return [self._answer(rollout, row, used[row], a) for row, a in enumerate(assemblers)]

    def _answer(self, rollout, row: int, used: int, assembler: Assembler) -> Answer:
        assembler.flush()
        if assembler.stopped:
            finish, counted = "stop", used
        else:
            finish = "end" if rollout.ended[row] else "length"
            counted = int(rollout.length[row])
        return Answer(
            text=assembler.text,
            ids=tuple(map(int, rollout.ids[row, :used])),
            finish=finish,
            logp=float(rollout.logp[row, :counted].sum()),
        )

    def answer_all(
        self, prompts: Sequence[Sequence[int]], row_ids: Sequence[int], batch_rows: int
    ) -> Iterator[tuple[int, Answer]]:
        """(index, answer) of every prompt, batch by batch, prompts of similar length together."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        for at in range(0, len(order), batch_rows):
            rows = order[at : at + batch_rows]
            answers = self.answer_batch(
                [prompts[i] for i in rows],
                [row_ids[i] for i in rows],
                pad_rows=batch_rows if len(order) > batch_rows else 0,
            )
            yield from zip(rows, answers)


def _text_length(rollout, row: int) -> int:
    """Tokens of the row that are text: without its end token."""
    return int(rollout.length[row]) - int(rollout.ended[row])
