"""The token-and-mask audit: what is trained in a rendered conversation is the answers, all of them, and nothing else.

It looks at the result of rendering, not at how it was made: trained stretches are decoded and held against the text of
the answers. A template or tokenizer that silently trains on prompts, or never on the end of a turn, is found here.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jinstr import errors
from jinstr.data import batching
from jinstr.text import paint

NO_TRAINED_TOKEN = "no trained token"
UNTRAINED_END = "untrained end of turn"
TRAINED_PROMPT = "trained prompt token"
UNTRAINED_ANSWER = "untrained answer token"


def trained_stretches(mask: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs [start, end) of True in a bool [n] array."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2])]


def _bare(text: str) -> str:
    """Text without what normalisation profiles may change: width, composition, spaces and wave dashes."""
    text = unicodedata.normalize("NFKC", text).replace("〜", "~")
    return "".join(text.split())


def problems(
    messages: Sequence[Mapping], tokens: np.ndarray, mask: np.ndarray, template, tokenizer
) -> tuple[str, ...]:
    """Findings for a rendered conversation whose every assistant turn is to be trained; () when all is well.

    Args: tokens i32 [n + 1]; mask bool [n + 1], True = trained as a target. template gives `stop_ids`, the ids that end
    a turn, and `ends_every_turn` (False: only the last answer ends with one of them).
    """
    stretches = trained_stretches(mask)
    if not stretches:
        return (NO_TRAINED_TOKEN,)
    found = []
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    stops = set(template.stop_ids)
    texts = []
    for start, end in stretches:
        ids = tokens[start:end].tolist()
        ended = [number for number, id in enumerate(ids) if id in stops]
        if not ended and (template.ends_every_turn or (start, end) == stretches[-1]):
            found.append(UNTRAINED_END)
        body = ids[: ended[0]] if ended else ids
        texts.append(_bare(tokenizer.decode(body)))
    asked = [_bare(answer) for answer in answers]
    if texts != asked:
        # Joined over all turns: more text than the answers hold means that prompt was trained.
        more = len("".join(texts)) > len("".join(asked)) or len(texts) > len(asked)
        found.append(TRAINED_PROMPT if more else UNTRAINED_ANSWER)
    return tuple(dict.fromkeys(found))


def show(who: str, tokens: Sequence[int], weights: Sequence[float], tokenizer) -> None:
    """Print an example to stderr as people read it. weights: of each token as a target, 0 = not trained."""
    text = paint.painted(tokenizer, list(tokens), list(weights), paint.has_colour(sys.stderr))
    print(f"── {who}; trained text is coloured or stands in ⟦ ⟧\n{text}", file=sys.stderr)


def _segment_problem(segment: Mapping[str, np.ndarray], stop_ids: Collection[int]) -> str:
    """What is wrong with one segment of a batch, "" when nothing is. Arrays [n]."""
    weights = segment["loss_weights"]
    if not (np.isfinite(weights) & (weights >= 0)).all():
        return "a loss weight is negative or not finite"
    if (segment["tokens"][1:] != segment["targets"][:-1]).any():
        return "targets are not the next tokens"
    if (segment["positions"] != np.arange(len(weights))).any():
        return "positions do not count from 0"
    trained = np.flatnonzero(weights > 0)
    if not len(trained):
        return NO_TRAINED_TOKEN
    # Of a text every token is trained; only conversations have turns that must end.
    is_chat = len(trained) < len(weights)
    if is_chat and stop_ids and int(segment["targets"][trained[-1]]) not in stop_ids:
        return UNTRAINED_END
    return ""


def check_batch(
    batch: Mapping[str, np.ndarray],
    tokenizer,
    *,
    stop_ids: Collection[int] = (),
    names: Sequence[tuple] = (),
) -> None:
    """Re-check one batch before training: every segment is whole and trained somewhere, padding is not trained.

    Args: stop_ids, ids that end a turn of a conversation (of the template); names, of the segments in order
    (Loader.example_ids). The example at fault is printed as people read it.
    Errors: DataError naming the row, segment and example.
    """
    weights, segments = batch["loss_weights"], batch["segment_ids"]
    if not (weights > 0).any():
        raise errors.DataError(
            "JI-AUDIT-001", "the batch holds no trained token; look: jinstr inspect"
        )
    if (weights[segments == 0] != 0).any():
        raise errors.DataError("JI-AUDIT-002", "the batch trains padding; prepare the data again")
    number = 0
    for row in range(len(segments)):
        for segment in range(1, int(segments[row].max(initial=0)) + 1):
            places = segments[row] == segment
            fields = {name: batch[name][row, places] for name in batching.FIELDS}
            who = f"row {row}, segment {segment}"
            if number < len(names):
                who += f" ({names[number][0]}, example {names[number][1]})"
            number += 1
            if not (problem := _segment_problem(fields, stop_ids)):
                continue
            tokens = [int(fields["tokens"][0]), *fields["targets"].tolist()]
            show(who, tokens, [0.0, *fields["loss_weights"].tolist()], tokenizer)
            raise errors.DataError(
                "JI-AUDIT-004", f"first batch, {who}: {problem}; look: jinstr inspect"
            )
