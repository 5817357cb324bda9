"""The shapes in which people keep their data: one row of a file to examples, as plain dicts of text.

What examples look like (the keys of each kind):
    lm          id, text, group
    chat        id, roles, contents, group, genre      roles: system, user, input, assistant
    preference  id, roles, contents (the prompt), chosen, rejected, group, annotator
    prompts     id, roles, contents (the prompt), responses, ranks (1 = best, ties allowed), group, annotator
    labels      id, roles, contents (the prompt), response, label (desired | undesired), group, annotator
`group` is what splits go by: the prompt, so that answers to one question stay together, or a field such as the author.
A row has the shape whose needed keys it has and whose foreign keys it lacks. `text` is the question in ichikara data
and the whole sample in jaster data, so a row that fits several shapes is refused, never guessed.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Iterator, Mapping

from jinstr.data import bad_rows

Row = Mapping
MOST_COLUMNS = 26  # answers that a line of a table may have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One shape of rows."""

    kind: str  # lm | chat | preference | prompts | labels
    needs: tuple[str, ...]  # keys that must be there; "a|b" = one of them
    lacks: tuple[str, ...] = ()  # keys that other shapes have
    examples: Callable[[Row], Iterator[dict]]


def group_of(text: str) -> str:
    """What a prompt is grouped by: its text without differences of width and of spaces at the ends."""
    return unicodedata.normalize("NFKC", text).strip()


def get(row: Row, *names: str) -> str:
    """The text under the first of the names that the row has. Errors: BadRow for anything but text."""
    for name in names:
        if row.get(name) is not None:
            if not isinstance(row[name], str):
                raise bad_rows.BadRow(
                    bad_rows.WRONG_TYPE, f"{name} is {type(row[name]).__name__}, not text"
                )
            return row[name]
    raise bad_rows.BadRow(bad_rows.MISSING, f"no {' or '.join(names)}")


def texts(example: Mapping) -> list[str]:
    """All text in an example."""
    found = [example["text"]] if "text" in example else list(example["contents"])
    found += [example[name] for name in ("chosen", "rejected", "response") if name in example]
    return [*found, *example.get("responses", ())]


def checked(example: dict) -> dict:
    """The example. Errors: BadRow where its text holds what text never does."""
    for text in texts(example):
        if "\0" in text:
            place = text.index("\0")
            raise bad_rows.BadRow(bad_rows.NUL, f"a NUL character after {text[:place][-20:]!r}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            why = f"half of a surrogate pair, {text[error.start]!r}, is no character"
            raise bad_rows.BadRow(bad_rows.SURROGATE, why) from None
    return example


def id_of(row: Row, names: tuple[str, ...] = ("id", "ID", "index", "q_id", "question_id")) -> str:
    """The row's own name for itself; "" when it has none."""
    for name in names:
        if row.get(name) not in (None, ""):
            return str(row[name])
    return ""


def prompt_group(roles: list[str], contents: list[str]) -> str:
    """The group of a conversation: its first question with the material under it."""
    first = next((n for n, role in enumerate(roles) if role == "user"), 0)
    last = first + 2 if roles[first + 1 : first + 2] == ["input"] else first + 1
    return group_of("\n\n".join(contents[first:last]))


def chat(row: Row, roles: list[str], contents: list[str]) -> dict:
    genre = row.get("genre") or row.get("category") or ""
    return {
        "id": id_of(row),
        "roles": roles,
        "contents": contents,
        "group": prompt_group(roles, contents),
        "genre": str(genre),
    }


def _answers(row: Row, *names: str) -> list[str]:
    """The answer under one of the names: a text or a list of texts."""
    for name in names:
        value = row.get(name)
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
    return [get(row, *names)]


def _text(row: Row) -> Iterator[dict]:
    # `index` counts the rows of one shard, in tables that pandas wrote: it names no document.
    yield {"id": id_of(row, ("id", "ID")), "text": get(row, "text"), "group": ""}


def _instruction(row: Row) -> Iterator[dict]:
    """alpaca, dolly and jaster: an instruction, perhaps with an input, and its output."""
    instruction = get(row, "instruction")
    given = row.get("input") or row.get("context") or ""
    if not isinstance(given, str):
        raise bad_rows.BadRow(bad_rows.WRONG_TYPE, f"input is {type(given).__name__}, not text")
    for answer in _answers(row, "output", "response"):
        roles = ["user", "input", "assistant"] if given.strip() else ["user", "assistant"]
        contents = [instruction, given, answer] if given.strip() else [instruction, answer]
        yield chat(row, roles, contents)


def _ichikara(row: Row) -> Iterator[dict]:
    for answer in _answers(row, "output"):
        yield chat(row, ["user", "assistant"], [get(row, "text"), answer])


ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "agent": "assistant",
    "prompter": "user",
}


def _turns(row: Row, turns, role_key: str, text_key: str) -> Iterator[dict]:
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise bad_rows.BadRow(bad_rows.WRONG_TYPE, "the conversation is not a list of turns")
    roles = [get(turn, role_key) for turn in turns]
    roles = [ROLES.get(role, role) for role in roles]
    unknown = sorted({*roles} - {"system", "user", "assistant"})
    if unknown:
        raise bad_rows.BadRow(bad_rows.SHAPE, f"unknown role {unknown[0]!r}")
    expected = ["user", "assistant"] * len(roles)
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != expected[: len(body)]:
        raise bad_rows.BadRow(
            bad_rows.SHAPE,
            f"turns are {', '.join(roles) or 'missing'}; user and assistant must alternate",
        )
    yield chat(row, roles, [get(turn, text_key) for turn in turns])


def _messages(row: Row) -> Iterator[dict]:
    turns = row.get("messages") or row.get("conversations")
    yield from _turns(row, turns, "role", "content")


def _sharegpt(row: Row) -> Iterator[dict]:
    yield from _turns(row, row.get("conversations"), "from", "value")


def _utterances(row: Row) -> Iterator[dict]:
    """instruction_ja: utterances by user and agent."""
    yield from _turns(row, row.get("utterances"), "name", "text")


def _prompt(row: Row) -> tuple[list[str], list[str]]:
    """Roles and texts of the prompt of a comparison: a text, or a list of messages."""
    prompt = row.get("prompt", row.get("instruction"))
    if isinstance(prompt, list):
        example = next(_turns(row, prompt, "role", "content"))
        return example["roles"], example["contents"]
    given = row.get("input") or ""
    roles, contents = ["user"], [get(row, "prompt", "instruction")]
    return (roles + ["input"], contents + [given]) if given else (roles, contents)


def _last_answer(value) -> str:
    """An answer, or the last turn of a conversation that ends with it."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        return get(value[-1], "content")
    if isinstance(value, str):
        return value
    raise bad_rows.BadRow(bad_rows.WRONG_TYPE, "an answer is neither text nor a list of messages")


def _annotator(row: Row) -> str:
    """Who compared the answers; "" when it is not said."""
    return id_of(row, ("annotator", "labeler"))


def _preference(row: Row) -> Iterator[dict]:
    roles, contents = _prompt(row)
    pair = [
        _last_answer(row.get(name, row.get(f"{name}_response"))) for name in ("chosen", "rejected")
    ]
    group = prompt_group(roles, contents)
    yield {
        "id": id_of(row),
        "roles": roles,
        "contents": contents,
        "chosen": pair[0],
        "rejected": pair[1],
        "group": group,
        "annotator": _annotator(row),
    }


def _ranking(row: Row) -> Iterator[dict]:
    roles, contents = _prompt(row)
    responses, ranks = row["responses"], row["ranks"]
    fits = isinstance(responses, list) and isinstance(ranks, list) and len(responses) == len(ranks)
    if not fits or len(responses) < 2 or not all(isinstance(text, str) for text in responses):
        raise bad_rows.BadRow(
            bad_rows.WRONG_TYPE, "responses and ranks must be lists of one length, at least 2"
        )
    if not all(isinstance(rank, int) and rank >= 1 for rank in ranks):
        raise bad_rows.BadRow(
            bad_rows.SHAPE, f"ranks are whole numbers from 1 = best, found {ranks}"
        )
    yield {
        "id": id_of(row),
        "roles": roles,
        "contents": contents,
        "responses": responses,
        "ranks": ranks,
        "group": prompt_group(roles, contents),
        "annotator": _annotator(row),
    }


def _ranking_sheet(row: Row) -> Iterator[dict]:
    """A line of a table: response1, rank1, response2, rank2, …; an answer without a rank was not ranked."""
    responses, ranks = [], []
    for number in range(1, MOST_COLUMNS + 1):
        answer = row.get(f"response{number}")
        place = unicodedata.normalize("NFKC", str(row.get(f"rank{number}") or "")).strip()
        if not answer or not place:
            continue
        # A sheet may keep 2 as 2.0, and people type 2位.
        place = place.removesuffix("位").removesuffix(".0")
        if not place.isdecimal():
            raise bad_rows.BadRow(bad_rows.SHAPE, f"rank{number} is {place!r}, not a whole number")
        responses.append(get(row, f"response{number}"))
        ranks.append(int(place))
    if len(responses) < 2:
        raise bad_rows.BadRow(
            bad_rows.MISSING, f"{len(responses)} ranked answers; at least 2 are compared"
        )
    yield from _ranking({**row, "responses": responses, "ranks": ranks})


LABELS = {"desired": "desired", "undesired": "undesired", "true": "desired", "false": "undesired"}


def _labelled(row: Row) -> Iterator[dict]:
    """One answer and whether it is as wanted, as for KTO; true and false are what TRL writes."""
    roles, contents = _prompt(row)
    label = LABELS.get(str(row["label"]).strip().lower())
    if label is None:
        raise bad_rows.BadRow(
            bad_rows.SHAPE, f"label {row['label']!r} is not desired, undesired, true or false"
        )
    yield {
        "id": id_of(row),
        "roles": roles,
        "contents": contents,
        "response": _last_answer(row.get("response", row.get("completion"))),
        "label": label,
        "group": prompt_group(roles, contents),
        "annotator": _annotator(row),
    }


def _squad(row: Row) -> Iterator[dict]:
    """SQuAD and JaQuAD: one article with paragraphs; a question on a paragraph is a conversation of one turn."""
    for paragraph in row["paragraphs"]:
        for question in paragraph["qas"]:
            answers = [answer["text"] for answer in question["answers"]]
            if not answers:
                continue  # SQuAD 2: no answer in the text
            contents = [get(question, "question"), get(paragraph, "context"), answers[0]]
            yield chat(question, ["user", "input", "assistant"], contents) | {"genre": "closed_qa"}


CHOOSE = "質問に対する答えを選択肢から選んでください。\n\n質問：{question}\n選択肢：{choices}"


def _choice(row: Row) -> Iterator[dict]:
    """JCommonsenseQA: five choices; the answer is the text of the right one. Evaluation reads `candidates`."""
    candidates = [get(row, f"choice{number}") for number in range(5)]
    question = CHOOSE.format(question=get(row, "question"), choices="、".join(candidates))
    label = str(row.get("label")).strip()  # sheets and CSV keep numbers as text
    if label not in ("0", "1", "2", "3", "4"):
        raise bad_rows.BadRow(bad_rows.SHAPE, f"label {row.get('label')!r} is not one of 0 to 4")
    answer = candidates[int(label)]
    example = chat(row, ["user", "assistant"], [question, answer])
    yield example | {"genre": "classification", "candidates": candidates}


_CHAT_KEYS = (
    "instruction",
    "output",
    "messages",
    "conversations",
    "utterances",
    "prompt",
    "responses",
)
FORMATS: dict[str, Format] = {
    "text": Format(kind="lm", needs=("text",), lacks=(*_CHAT_KEYS, "message_id"), examples=_text),
    "alpaca": Format(
        kind="chat",
        needs=("instruction", "output"),
        lacks=("category", "genre", "context", "text"),
        examples=_instruction,
    ),
    "dolly": Format(
        kind="chat",
        needs=("instruction", "output|response", "category"),
        lacks=("text",),
        examples=_instruction,
    ),
    "ichikara": Format(
        kind="chat", needs=("text", "output"), lacks=("instruction", "input"), examples=_ichikara
    ),
    "jaster": Format(
        kind="chat", needs=("instruction", "input", "output", "text"), examples=_instruction
    ),
    "messages": Format(kind="chat", needs=("messages|conversations",), examples=_messages),
    "sharegpt": Format(kind="chat", needs=("conversations",), examples=_sharegpt),
    "utterances": Format(kind="chat", needs=("utterances",), examples=_utterances),
    "squad": Format(kind="chat", needs=("paragraphs",), examples=_squad),
    "jcommonsenseqa": Format(
        kind="chat", needs=("question", "choice0", "choice4", "label"), examples=_choice
    ),
    "preference": Format(
        kind="preference",
        needs=("prompt|instruction", "chosen|chosen_response", "rejected|rejected_response"),
        examples=_preference,
    ),
    "ranking": Format(
        kind="prompts", needs=("prompt|instruction", "responses", "ranks"), examples=_ranking
    ),
    "ranking_sheet": Format(
        kind="prompts",
        needs=("prompt|instruction", "response1", "response2", "rank1", "rank2"),
        examples=_ranking_sheet,
    ),
    "labelled": Format(
        kind="labels",
        needs=("prompt|instruction", "response|completion", "label"),
        examples=_labelled,
    ),
    # Rows of a tree belong together: readers join them (`oasst.conversations`) into rows of messages.
    "oasst": Format(kind="chat", needs=("message_id", "parent_id", "role"), examples=_messages),
}


def fits(row: Row) -> list[str]:
    """Names of the formats whose keys the row has."""
    keys = set(row)
    found = []
    for name, format in FORMATS.items():
        has = all(keys & set(need.split("|")) for need in format.needs)
        if has and not keys & set(format.lacks):
            found.append(name)
    if "messages" in found and "sharegpt" in found:
        turns = row["conversations"]
        first = turns[0] if isinstance(turns, list) and turns else {}
        found.remove("messages" if "from" in first else "sharegpt")
    return found
