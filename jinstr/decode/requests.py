"""Files of `jinstr generate`: prompts in, a log of answers that survives interruption, blind answer sheets out.

OUT.answers.jsonl   the log: one line for each finished answer, appended as it is produced. An answer whose key is in
                    the log is never generated again; a last line cut short by an interruption is dropped.
OUT                 made from the log when it is complete: one line for each prompt.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from jinstr import errors


def read_prompts(path) -> list[dict]:
    """Prompts of a JSONL file as {"id", "roles", "contents"}; a trailing assistant turn is left out.

    A line holds `messages`; or `roles` and `contents`; or one of `prompt`, `instruction` (with `input` or `context`),
    `text`. `id` (or `ID`) defaults to the line number. Errors: DataError with the line, on a bad shape or repeated id.
    """
    prompts, seen = [], {}
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        roles, contents = prompt_of(row, where)
        name = str(row.get("id", row.get("ID", number)))
        if name in seen:
            raise errors.DataError(
                "JI-GENERATE-003", f"{where}: id {name!r} was used in line {seen[name]}"
            )
        seen[name] = number
        prompts.append({"id": name, "roles": roles, "contents": contents})
    return prompts


def read_rows(path) -> Iterator[tuple[int, dict]]:
    """(line number, fields) of a JSONL file. Errors: DataError with the line that is no object."""
    # Not splitlines(): text may hold U+2028 or U+0085, which JSON leaves as they are.
    for number, line in enumerate(pathlib.Path(path).read_text("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not fields")
        except ValueError as error:
            raise errors.DataError("JI-GENERATE-001", f"{path}:{number}: {error}") from error
        yield number, row


def prompt_of(row: dict, where: str) -> tuple[list[str], list[str]]:
    """Roles and contents of the prompt of a line, without an answer at the end. Errors: DataError naming `where`."""
    try:
        roles, contents = _turns(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.DataError(
            "JI-GENERATE-001",
            f"{where}: no prompt found ({error}); a line needs messages, roles and contents, prompt, "
            "instruction or text",
        ) from error
    if roles and roles[-1] == "assistant":
        roles, contents = roles[:-1], contents[:-1]
    asked = roles[-1:] == ["user"] or roles[-2:] == ["user", "input"]
    if not asked or not all(isinstance(c, str) for c in contents):
        raise errors.DataError(
            "JI-GENERATE-002", f"{where}: the last turn is not a user's text, or an input after one"
        )
    return roles, contents


def _turns(row: dict) -> tuple[list[str], list[str]]:
    if "messages" in row:
        return [m["role"] for m in row["messages"]], [m["content"] for m in row["messages"]]
    if "roles" in row:
        if len(row["roles"]) != len(row["contents"]):
            raise ValueError("roles and contents differ in length")
        return list(row["roles"]), list(row["contents"])
    if "instruction" in row:
        # As in training (data.formats): the input is a turn of its own, which templates write in their own way.
        given = row.get("input") or row.get("context") or ""
        if given.strip():
            return ["user", "input"], [row["instruction"], given]
        return ["user"], [row["instruction"]]
    if isinstance(row.get("prompt"), list):  # of a comparison: the messages before its answers
        return [m["role"] for m in row["prompt"]], [m["content"] for m in row["prompt"]]
    return ["user"], [row["prompt"] if "prompt" in row else row["text"]]


def digest(value) -> str:
    """16 hex digits of anything JSON can hold."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class AnswerLog:
    """The answers produced so far, by key; `add` appends one line and flushes it to the system."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.answers: dict[str, dict] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._recover()
        self._file = self.path.open("a", encoding="utf-8")

    def _recover(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
            try:
                answer = json.loads(line)
                self.answers[answer["key"]] = answer
            except (ValueError, KeyError, TypeError) as error:
                raise errors.DataError(
                    "JI-GENERATE-004",
                    f"{self.path}:{number}: not a line of an answer log; move it away or name another OUTPUT",
                ) from error

    def add(self, answer: dict) -> None:
        self.answers[answer["key"]] = answer
        self._file.write(json.dumps(answer, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def sheet(prompts: Sequence[dict], answers_of: dict[str, list[dict]]) -> Iterator[dict]:
    """One line for each prompt: its distinct answers in a blind order, and who wrote them in columns of their own.

    Answers that differ in outer white space only are one; `models` then names all that gave it. The order of
    `responses` and the `answer_ids` come from a hash of prompt and text, so neither tells the model.
    """
    for prompt in prompts:
        distinct: dict[str, list[dict]] = {}
        for answer in answers_of[prompt["id"]]:
            distinct.setdefault(answer["text"].strip(), []).append(answer)
        blind = sorted((digest([prompt["id"], text]), text) for text in distinct)
        yield prompt | {
            "responses": [text for _, text in blind],
            "answer_ids": [name for name, _ in blind],
            "models": [sorted({a["model"] for a in distinct[text]}) for _, text in blind],
            "temperatures": [
                sorted({a["temperature"] for a in distinct[text]}) for _, text in blind
            ],
            "finish": [distinct[text][0]["finish"] for _, text in blind],
        }


def write_jsonl(path, rows) -> None:
    """Write all rows or nothing: into a file beside it, then renamed."""
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(part, path)
