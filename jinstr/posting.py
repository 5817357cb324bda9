"""JSON sent to a server by POST, several requests at a time at most, asked again where that may help.

A request is made again after a status of 429 or from 500 on, a broken connection or a timeout, and not after any other
status or an answer of another shape. A token goes along as `Authorization: Bearer …` from an environment variable; no
message shows it. Redirections are errors: following them would hand the token to others.
"""

from __future__ import annotations

import http.client
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jinstr
from jinstr import errors, redact

MOST_BYTES = 64 * 2**20  # of one reply
MOST_TEXT = 300  # characters of an error that are told
LONGEST_WAIT = 30.0  # seconds between two tries
Value = TypeVar("Value")


class Failure(NamedTuple):
    """Why a request gave nothing."""

    fault: str  # timeout | error
    text: str
    is_passing: bool  # may another try help?
    wait: float = 0.0  # seconds that the server asks for


def name_of(url: str, token: str) -> str:
    """Host, port and path of an address; `token`: the variable that holds what some put into addresses.

    Errors: ConfigError for an address that cannot be used.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        is_usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or any(c.isspace() for c in url):
        raise errors.ConfigError(
            "JI-POST-001", f"{redact.text(url)!r} is no address; give http://host:port/path"
        )
    if "@" in parts.netloc:
        raise errors.ConfigError(
            "JI-POST-002",
            f"{parts.hostname}: no password belongs in an address; put a token in the variable {token}",
        )
    return parts.netloc + parts.path.rstrip("/")


def _token(variable: str) -> str:
    token = os.environ.get(variable, "").strip()
    if not all("!" <= c <= "~" for c in token):
        raise errors.ConfigError(
            "JI-POST-003", f"{variable} holds a character that no header may have; set it again"
        )
    return token


def _opener(host: str) -> urllib.request.OpenerDirector:
    """Opens addresses, without following redirections; what is on this machine is not asked through a proxy."""
    is_here = host in ("localhost", "::1") or host.startswith("127.")
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if is_here else None),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError) or isinstance(
        getattr(error, "reason", None), TimeoutError
    )


class Poster:
    """Posts to one address. Threads may share it."""

    def __init__(self, url: str, *, token: str, timeout: float, retries: int, backoff: float):
        """token: the environment variable that may hold one. timeout: seconds of one request; backoff: before the
        second one, doubled after each, varied by half."""
        self.name = name_of(url, token)
        self._url, self._token = url, _token(token)
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._opener = _opener(urllib.parse.urlsplit(url).hostname)

    def post(
        self,
        body: bytes,
        parse: Callable[[bytes], Value | Failure],
        *,
        seed: int,
        stop: threading.Event,
    ) -> Value | Failure:
        """What `parse` makes of the reply to a body, or the failure of the last of up to 1 + retries requests.

        seed: the same pauses whenever the same is asked. stop: set, nothing is asked again.
        """
        chance = random.Random(seed)
        for attempt in range(1 + self._retries):
            got = self._try(body, parse)
            if not isinstance(got, Failure):
                return got
            pause = self._backoff * 2**attempt * (0.5 + chance.random())
            pause = min(max(pause, got.wait), LONGEST_WAIT)
            is_last = attempt == self._retries
            if is_last or not got.is_passing or stop.wait(pause):
                break
        return got

    def _try(self, body: bytes, parse: Callable[[bytes], Value | Failure]) -> Value | Failure:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"jinstr/{jinstr.__version__}",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                reply = _read(response, deadline)
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            if _is_timeout(error):
                return Failure("timeout", f"no reply after {self._timeout:g} seconds", True)
            text = self.clean(f"{type(error).__name__}: {error}")
            return Failure("error", text, is_passing=True)
        return parse(reply)

    def _refused(self, error: urllib.error.HTTPError) -> Failure:
        """The failure that a status other than 2xx is."""
        with error:
            try:
                told = error.read1(2000).decode("utf-8", "replace")
            except (OSError, http.client.HTTPException):
                told = ""
            wait = error.headers.get("Retry-After", "")
        hint = " (give the address that it redirects to)" if 300 <= error.code < 400 else ""
        text = self.clean(f"status {error.code} {error.reason}{hint}: {told}")
        passing = error.code == 429 or error.code >= 500
        return Failure("error", text, passing, float(wait) if wait.isdecimal() else 0.0)

    def wrong(self, words: str, reply: bytes) -> Failure:
        """The failure that a reply of another shape is."""
        shown = reply[:2000].decode("utf-8", "replace")
        return Failure("error", self.clean(f"{words}: {shown}"), is_passing=False)

    def clean(self, text: str) -> str:
        """The text in one line and without secrets, also where a server sends the token back."""
        return " ".join(redact.text(self.hide(text)).split())[:MOST_TEXT]

    def hide(self, text: str) -> str:
        """The text without the token."""
        return text.replace(self._token, redact.MARK) if self._token else text


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body. Errors: TimeoutError, IncompleteRead, and HTTPException for one that is too long."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > MOST_BYTES:
            raise http.client.HTTPException(f"a reply of more than {MOST_BYTES} bytes")
    if response.length:  # what was announced and did not come
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)
