"""Secrets stay out of what is written: logs, records of a run, trackers.

A secret is told in three ways:
- by value: what an environment variable holds whose name has the word TOKEN, SECRET, PASSWORD, KEY and so on, and the
  password of an address in any variable. Values that occur by chance are left alone: shorter than 8 characters, only
  digits or only letters below 16 characters, and names of files that are there;
- by key: NAME=value, "name": value, and fields, where the name says so (KEY alone does not), in command lines, settings
  and messages; not in all that is printed, which is also people's text;
- by shape: user:password@ in an address, signatures behind its question mark, and tokens with a well-known beginning.
Imports nothing from jinstr.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

MARK = "[redacted]"

_WORDS = "TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|APIKEY"
# Whole words only: HF_TOKEN and api-token, but not TOKENIZER, BATCH_TOKENS, MAX_NEW_TOKENS.
_VARIABLE = re.compile(rf"(?:^|_)(?:{_WORDS}|KEY)(?:_|$)", re.IGNORECASE)
_NAME = (
    rf"(?:[A-Za-z0-9]+[_-])*(?:{_WORDS}|(?:API|ACCESS|SECRET|PRIVATE)[_-]KEY)(?:[_-][A-Za-z0-9]+)*"
)
_FIELD = re.compile(_NAME, re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"(?<![\w.-])((?:--)?{_NAME}(?:\s?=\s?|[\"']:\s?)[\"']?)([^\s\"',;&)\]}}]{{4,}})",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/\s@\"']+)@")
_SIGNATURE = re.compile(
    r"([?&](?:[\w.-]*[._-])?(?:token|secret|password|key|signature|sig|credential)=)[^&\s\"']+",
    re.IGNORECASE,
)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,})"
)


def _is_secret(value: str) -> bool:
    """Is the value long and odd enough that it stands in a text only because someone wrote the secret there?"""
    if len(value) < 8 or (len(value) < 16 and (value.isdigit() or value.isalpha())):
        return False
    return not os.path.exists(value)


def secrets() -> list[str]:
    """Every spelling of the environment's secrets, longest first: plain, in Python and JSON strings, in addresses."""
    values = set()
    for name, value in os.environ.items():
        if _VARIABLE.search(name):
            values.add(value.strip())
        for address in _ADDRESS.finditer(value):
            values.add(address[2].partition(":")[2])
    spelled = set()
    for value in filter(_is_secret, values):
        quoted = urllib.parse.quote(value, safe="")
        spelled |= {value, repr(value)[1:-1], json.dumps(value)[1:-1], quoted}
    return sorted(spelled, key=len, reverse=True)


def text(text: str, *, by_key: bool = True) -> str:
    """The text with MARK in place of every secret."""
    for secret in secrets():
        text = text.replace(secret, MARK)
    text = _ADDRESS.sub(rf"\1{MARK}@", text)
    text = _SIGNATURE.sub(rf"\1{MARK}", text)
    text = _SHAPES.sub(MARK, text)
    return _ASSIGNED.sub(rf"\1{MARK}", text) if by_key else text


def tree(value: Any) -> Any:
    """JSON values with MARK in place of every secret, also of fields whose name says that they hold one."""
    if isinstance(value, dict):
        return {
            name: MARK if item and isinstance(item, str) and _FIELD.fullmatch(name) else tree(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [tree(item) for item in value]
    return text(value) if isinstance(value, str) else value


class Stream:
    """A text stream that writes MARK in place of secrets; all else is the stream's own."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, written: str) -> int:
        self._stream.write(text(written, by_key=False))
        return len(written)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Within, nothing that is printed shows a secret, and sys.argv, which trackers copy, holds none."""
    before = sys.stdout, sys.stderr, sys.argv
    sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)
    sys.argv = [text(word) for word in sys.argv]
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.argv = before


def guard(call: Callable[[], int]) -> int:
    """call() within `output`; returns its exit status, or 1 after an exception, printed without its secrets."""
    with output():
        try:
            return call()
        except Exception:  # left to the interpreter, its text would be printed as it is
            print(text(traceback.format_exc()), end="", file=sys.stderr)
            return 1
