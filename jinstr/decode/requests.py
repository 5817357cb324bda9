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
    `text`, `input_text` (ELYZA-tasks-100), `turns` (Rakuda, Japanese MT-bench: the texts of one user, in a list). `id`
    (or `ID`, `question_id`) defaults to the line number. A prompt of several turns has them all as "turns" besides.
    Errors: DataError with the line, on a bad shape or repeated id.
    """
    prompts, seen = [], {}
    for number, row in read_rows(path):
        where = f"{path}:{number}"
        turns = row.get("turns")
        is_long = (
            isinstance(turns, list) and len(turns) > 1 and all(isinstance(t, str) for t in turns)
        )
        roles, contents = (["user"], turns[:1]) if is_long else prompt_of(row, where)
        name = next(
            (str(row[key]) for key in ("id", "ID", "question_id") if key in row), str(number)
        )
        if name in seen:
            raise errors.DataError(
                "JI-GENERATE-003", f"{where}: id {name!r} was used in line {seen[name]}"
            )
        seen[name] = number
        prompts.append({"id": name, "roles": roles, "contents": contents})
        if is_long:
            prompts[-1]["turns"] = turns
    return prompts


def turns_of(prompt: dict) -> int:
    """How many turns of a prompt are to be answered."""
    return len(prompt.get("turns", (None,)))


def at_turn(prompt: dict, answers: Sequence[str]) -> dict:
    """The prompt when so many of its turns have been answered, with all that was said before in front."""
    if not answers:
        return {name: prompt[name] for name in ("id", "roles", "contents")}
    contents = [text for pair in zip(prompt["turns"], answers) for text in pair]
    return {
        "id": f"{prompt['id']} turn {len(answers) + 1}",
        "roles": ["user", "assistant"] * len(answers) + ["user"],
        "contents": [*contents, prompt["turns"][len(answers)]],
    }


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
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise errors.DataError(
            "JI-GENERATE-001",
            f"{where}: no prompt found ({error}); a line needs messages, roles and contents, prompt, "
            "instruction, text, input_text or turns",
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
    if isinstance(row.get("turns"), list):
        if len(row["turns"]) != 1:
            raise ValueError(f"{len(row['turns'])} turns, where one is asked for")
        return ["user"], list(row["turns"])
    return ["user"], [next(row[key] for key in ("prompt", "input_text", "text") if key in row)]


def joined(answers: Sequence[dict]) -> dict:
    """Answers of the log to the turns of a prompt as one; of several turns its text is a list."""
    texts = [answer["text"] for answer in answers]
    return answers[-1] | {"text": texts if len(texts) > 1 else texts[0]}


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
    `responses` and the `answer_ids` come from a hash of prompt and text, so neither tells the model. To a prompt of
    several turns a response is a list, with the answer to each.
    """
    for prompt in prompts:
        distinct: dict = {}
        for answer in answers_of[prompt["id"]]:
            text = answer["text"]
            text = text.strip() if isinstance(text, str) else tuple(part.strip() for part in text)
            distinct.setdefault(text, []).append(answer)
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
