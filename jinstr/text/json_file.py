"""JSON files that strangers wrote: bounded, and refused in one line."""

from __future__ import annotations

import json
import pathlib

from jinstr import errors

LIMIT = 16_000_000  # bytes; configurations have some thousands
TOKENIZER_LIMIT = (
    200_000_000  # bytes of a tokenizer.json; those with 262,144 tokens have 35 million
)


def read_bytes(path: pathlib.Path, code: str, limit: int = LIMIT) -> bytes:
    """The bytes of a file. Errors: ConfigError with the given code for one of more than `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise errors.ConfigError(
            code,
            f"{path}: {size:,} bytes, and {limit:,} are the most that is read; this is not the file it is named as, "
            "take it from the model again",
        )
    return path.read_bytes()


def read(path: pathlib.Path, code: str):
    """The value in a JSON file. Errors: ConfigError with the given code for no JSON, or more than LIMIT bytes."""
    data = read_bytes(path, code)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise errors.ConfigError(code, f"{path}: not JSON ({error})") from None
