"""What people, or a model in their place, said of answers: one record for each look at a pair.

Sheets, judges and the web of annotators all end in these lines (judgements.jsonl); every statistic begins with them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping

from jinstr import errors

# Name, Japanese name, what a rater asks of an answer; scores from 1 to 5.
AXES = {
    "fluency": "流暢性",
    "accuracy": "正確性",
    "detail": "詳細性",
    "relevance": "関連性",
}
VERDICTS = ("left", "right", "tie")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """One rater's verdict on two answers to a prompt, as they were shown: one on the left (A), one on the right (B)."""

    prompt: str  # id of the prompt
    rater: str  # a person's id; "judge:NAME" for a model
    left: str  # model whose answer was shown as A
    right: str
    verdict: str  # left | right | tie
    scores_left: Mapping[str, int] = dataclasses.field(default_factory=dict)  # axis → 1 … 5
    scores_right: Mapping[str, int] = dataclasses.field(default_factory=dict)
    comment_left: str = ""
    comment_right: str = ""
    comment: str = ""
    repeat: int = 0  # 1 for the hidden second showing of a pair to the same rater
    where: str = ""  # file and cells that it was read from

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise errors.DataError(
                "JI-HUMAN-001", f"{self.where}: the verdict {self.verdict!r} is none of {VERDICTS}"
            )
        if self.left == self.right:
            raise errors.DataError(
                "JI-HUMAN-002", f"{self.where}: {self.left} is compared with itself"
            )
        for scores in (self.scores_left, self.scores_right):
            for axis, score in scores.items():
                if axis not in AXES or not 1 <= score <= 5:
                    raise errors.DataError(
                        "JI-HUMAN-003", f"{self.where}: {axis} = {score!r} is no score from 1 to 5"
                    )

    @property
    def winner(self) -> str | None:
        """The preferred model; None for a tie."""
        return {"left": self.left, "right": self.right, "tie": None}[self.verdict]


def outcome(judgement: Judgement, model: str) -> float:
    """1 where `model` was preferred, 0 where the other one was, 0.5 for a tie."""
    return 0.5 if judgement.winner is None else float(judgement.winner == model)


def write(path, judgements: Iterable[Judgement]) -> None:
    """JSON Lines, one judgement each, in the order given; the file is there whole or not at all."""
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    lines = [json.dumps(dataclasses.asdict(j), ensure_ascii=False) for j in judgements]
    part.write_text("".join(line + "\n" for line in lines), "utf-8")
    part.replace(path)


def read(path) -> list[Judgement]:
    """The judgements of a file of `write`. Errors: DataError with the line."""
    found = []
    for number, line in enumerate(pathlib.Path(path).read_text("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append(Judgement(**(row | {"where": row.get("where") or f"{path}:{number}"})))
        except (ValueError, TypeError) as error:
            raise errors.DataError(
                "JI-HUMAN-004", f"{path}:{number}: not a judgement ({error})"
            ) from error
    return found
