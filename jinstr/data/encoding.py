"""One example (text) to its records (token ids and loss masks), for each kind of data."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from jinstr import errors
from jinstr.data import audit, records
from jinstr.text import render


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """What became of one example: its records, or the reason why it gave none."""

    records: list[records.Record]
    text_bytes: float = 0.0  # UTF-8 bytes of the trained text, times its weight
    drop: str = ""  # reason; "" = kept
    straddles: int = 0  # pieces split at a prompt/answer border
    problems: tuple[str, ...] = ()  # findings of the token-and-mask audit


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def _messages(example: Mapping) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for role, content in zip(example["roles"], example["contents"], strict=True)
    ]


def is_blank(text: str) -> bool:
    """Is there nothing to read in a text: only spaces (full-width too), controls, marks without a width?"""
    left = text.strip()  # nearly always something, and its first character is enough
    return all(unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") for c in left)


def encode_lm(source: str, example: Mapping, tokenizer) -> Encoded:
    """A document as [bos] text [eos], in chunks of at most records.MAX_TARGETS targets."""
    if is_blank(example["text"]):
        return Encoded(records=[], drop="empty")
    begin = [tokenizer.bos_id] if tokenizer.bos_id is not None and tokenizer.bos_id >= 0 else []
    ids = np.concatenate([begin, tokenizer.encode_array(example["text"]), [tokenizer.eos_id]])
    parts = records.chunks(ids.astype(np.int32))
    return Encoded(
        records=[
            records.Lm(src=source, id=example["id"], part=part, tokens=tokens)
            for part, tokens in enumerate(parts)
        ],
        text_bytes=_bytes(example["text"]),
    )


def _render(messages: Sequence[Mapping], tokenizer, template):
    """Ids i32 [n + 1], mask bool [n + 1], straddles, and audit findings of a conversation that ends with an answer."""
    rendered = render.render(messages, template, tokenizer)
    tokens = np.array(rendered.tokens, np.int32)
    mask = np.array(rendered.loss_mask, bool)
    return (
        tokens,
        mask,
        rendered.straddles,
        audit.problems(messages, tokens, mask, template, tokenizer),
    )


def encode_chat(source: str, example: Mapping, tokenizer, template) -> Encoded:
    """A conversation as one record; every answer in it is trained."""
    if "tokenizer" in example:
        return _encode_ids(source, example, tokenizer)
    messages = _messages(example)
    answers = [number for number, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not answers:
        return Encoded(records=[], drop="no answer")
    if any(is_blank(messages[number]["content"]) for number in answers):
        return Encoded(records=[], drop="empty answer")
    if any(turn["role"] == "user" and is_blank(turn["content"]) for turn in messages):
        return Encoded(records=[], drop="empty question")
    messages = messages[: answers[-1] + 1]
    tokens, mask, straddles, problems = _render(messages, tokenizer, template)
    if len(tokens) - 1 > records.MAX_TARGETS:
        return Encoded(records=[], drop="longer than a record")
    weight = float(example.get("weight", 1.0))
    record = records.Chat(
        src=source, id=example["id"], part=answers[-1], tokens=tokens, mask=mask, weight=weight
    )
    return Encoded(
        records=[record],
        text_bytes=weight * sum(_bytes(messages[number]["content"]) for number in answers),
        straddles=straddles,
        problems=problems,
    )


def _encode_ids(source: str, example: Mapping, tokenizer) -> Encoded:
    """A user's own `inputs` and `targets`, already ids of this tokenizer; targets are trained, with an end token."""
    if example["tokenizer"] != tokenizer.fingerprint:
        raise errors.ConfigError(
            "JI-ENCODE-001",
            f"{source} yields ids of another vocabulary than {tokenizer.path} (or that has a normalisation profile); "
            "let the task yield text",
        )
    inputs, targets = list(example["inputs"]), list(example["targets"])
    if targets[-1:] != [tokenizer.eos_id]:
        targets.append(tokenizer.eos_id)
    record = records.Chat(
        src=source,
        id=example["id"],
        part=1,
        tokens=np.array(inputs + targets, np.int32),
        mask=np.array([False] * len(inputs) + [True] * len(targets)),
        weight=float(example.get("weight", 1.0)),
    )
    if not inputs or len(record.tokens) - 1 > records.MAX_TARGETS:
        return Encoded(records=[], drop="longer than a record" if inputs else "no question")
    return Encoded(records=[record], text_bytes=record.weight * _bytes(tokenizer.decode(targets)))


def encode_ranked(source: str, example: Mapping, tokenizer, template) -> Encoded:
    """Answers to one prompt with ranks; a preference example is two answers with ranks 1 and 2, a label is a rank."""
    if "chosen" in example:
        answers, ranks = [example["chosen"], example["rejected"]], [1, 2]
    elif "response" in example:
        answers, ranks = [example["response"]], [1 if example["label"] == "desired" else 2]
    else:
        answers, ranks = list(example["responses"]), [int(rank) for rank in example["ranks"]]
    if not answers or any(map(is_blank, answers)):
        return Encoded(records=[], drop="empty answer")
    prompt = _messages(example)
    if any(turn["role"] == "user" and is_blank(turn["content"]) for turn in prompt):
        return Encoded(records=[], drop="empty question")
    rendered = [
        _render([*prompt, {"role": "assistant", "content": answer}], tokenizer, template)
        for answer in answers
    ]
    prompt_length = len(render.render_prompt(prompt, template, tokenizer))
    if max(len(tokens) for tokens, _, _, _ in rendered) - 1 > records.MAX_TARGETS:
        return Encoded(records=[], drop="longer than a record")
    # Only the last answer is compared; earlier answers in the prompt are context.
    masks = [mask & (np.arange(len(mask)) >= prompt_length) for _, mask, _, _ in rendered]
    record = records.Ranked(
        src=source,
        id=example["id"],
        part=len(prompt),
        prompt_length=prompt_length,
        answers=tuple(tokens for tokens, _, _, _ in rendered),
        masks=tuple(masks),
        ranks=tuple(ranks),
        annotator=example.get("annotator", ""),
    )
    return Encoded(
        records=[record],
        text_bytes=float(sum(_bytes(answer) for answer in answers)),
        straddles=sum(straddles for _, _, straddles, _ in rendered),
        problems=tuple(problem for _, _, _, found in rendered for problem in found),
    )


def trained_parts(record: records.Chat | records.Ranked) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, mask) of a conversation, or of each of the answers that are compared."""
    if isinstance(record, records.Chat):
        return [(record.tokens, record.mask)]
    return list(zip(record.answers, record.masks))


def encode(kind: str, source: str, example: Mapping, tokenizer, template) -> Encoded:
    """The records of one example of the given kind."""
    if kind == "lm":
        return encode_lm(source, example, tokenizer)
    if kind == "chat":
        return encode_chat(source, example, tokenizer, template)
    return encode_ranked(source, example, tokenizer, template)
