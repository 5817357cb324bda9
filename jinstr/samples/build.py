"""The built-in data as files: prose, instructions, evaluation sets, rankings and questions to practise on."""

import json
import pathlib
from collections.abc import Iterable

from jinstr.samples import prose, questions

FOLDER = pathlib.Path(__file__).resolve().parent
HAND_WRITTEN = "questions.jsonl"
EVALUATIONS = ("facts", "paraphrases", "sums")


def passages() -> list[str]:
    """The hand-written passages; a line of two dashes stands between them."""
    return (FOLDER / "passages.txt").read_text("utf-8").strip("\n").split("\n--\n")


def hand_written() -> list[dict]:
    """Questions and answers in the shape annotators use: ID, text, output, genre, purpose."""
    text = (FOLDER / HAND_WRITTEN).read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def conversations() -> list[dict]:
    """Conversations of several turns: ID, genre, purpose, messages."""
    text = (FOLDER / "conversations.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def write(folder: str | pathlib.Path, num_bytes: int = 4_000_000, seed: int = 0) -> pathlib.Path:
    """Write corpus, instructions, conversations, eval_*, rankings and practice* (.jsonl); returns the folder.

    The same arguments write the same bytes."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [*prose.documents(num_bytes, seed), *passages()]
    corpus = ({"id": f"prose-{number:05d}", "text": text} for number, text in enumerate(texts))
    _write(folder / "corpus.jsonl", corpus)
    asked = [*questions.instruction_rows(), *questions.reading_rows(), *hand_written()]
    _write(folder / "instructions.jsonl", asked)
    _write(folder / "conversations.jsonl", conversations())
    for name in EVALUATIONS:
        _write(folder / f"eval_{name}.jsonl", questions.evaluation_rows(name))
    _write(folder / "rankings.jsonl", questions.ranking_rows())
    _write(folder / "practice.jsonl", questions.practice_rows())
    _write(folder / "practice_sums.jsonl", questions.practice_sum_rows())
    return folder


def _write(path: pathlib.Path, rows: Iterable[dict]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), "utf-8")
