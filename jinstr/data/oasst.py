"""Message trees (OpenAssistant and its translations) to conversations."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping

from jinstr.data import formats


def checked(row: Mapping) -> Mapping:
    """The row of a message. Errors: BadRow where it cannot be joined with others."""
    for name in (
        "message_id",
        "role",
        *(["parent_id"] if row.get("parent_id") is not None else []),
    ):
        formats.get(row, name)
    return row


def conversations(rows: Iterable[Mapping], dropped: collections.Counter) -> Iterator[dict]:
    """One row of messages for each path from a root question to an answer that nobody answered on.

    Messages are joined by message_id and parent_id; `text_ja` is taken before `text`. A path ends before a message
    whose translation failed (`ng_translation` = 1) or that was deleted; paths without an answer are counted.
    """
    children: dict[str, list[Mapping]] = collections.defaultdict(list)
    for row in rows:
        failed = str(row.get("ng_translation", "0")) in ("1", "1.0", "True", "true")
        if failed or row.get("deleted") is True:
            dropped["failed translation" if failed else "deleted message"] += 1
            continue
        children[row.get("parent_id") or ""].append(row)
    paths = [[root] for root in reversed(children[""])]
    while paths:
        path = paths.pop()
        replies = children[path[-1]["message_id"]]
        paths += [[*path, reply] for reply in reversed(replies)]
        if replies:
            continue
        names = ["user" if row["role"] in ("prompter", "user") else "assistant" for row in path]
        while names and names[-1] == "user":
            names.pop()
        if not names:
            dropped["no answer"] += 1
            continue
        yield {
            "id": path[len(names) - 1]["message_id"],
            "messages": [
                {"role": name, "content": row.get("text_ja") or row.get("text")}
                for name, row in zip(names, path)
            ],
        }
