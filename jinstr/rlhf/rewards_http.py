"""Scores from a server: batches of answers as JSON over HTTP, several at a time, asked again where that may help.

Sent by POST:   {"items": [{"id", "messages": [{"role", "content"}, …], "answer", "row", "ended"}, …]}
Wanted back:    {"scores": [number or null, …], "version": "…"}        one score for each item, in order

With JINSTR_REWARD_TOKEN in the environment its value goes along as `Authorization: Bearer …`; no message shows it.
A batch is asked again after a status of 429 or from 500 on, a broken connection or a timeout, and not after any other
status or an answer of another shape. Redirections are errors: following them would hand the token to others.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import http.client
import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jinstr
from jinstr import errors, redact
from jinstr.rlhf import outcomes

TOKEN = "JINSTR_REWARD_TOKEN"
MOST_BYTES = 64 * 2**20  # of one reply
MOST_TEXT = 300  # characters of an error that are told
LONGEST_WAIT = 30.0  # seconds between two tries


class _Failure(NamedTuple):
    """Why one try gave no scores."""

    fault: str
    text: str
    is_passing: bool  # may another try help?
    wait: float = 0.0  # seconds that the server asks for


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """How a server is asked; see `rewards.RewardConfig`."""

    timeout: float
    retries: int
    batch: int
    connections: int
    backoff: float


def name_of(url: str) -> str:
    """Host, port and path of an address. Errors: ConfigError for an address that cannot be used."""
    try:
        parts = urllib.parse.urlsplit(url)
        is_usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or any(c.isspace() for c in url):
        raise errors.ConfigError(
            "JI-REWARDS-006", f"{redact.text(url)!r} is no address; give http://host:port/path"
        )
    if "@" in parts.netloc:
        raise errors.ConfigError(
            "JI-REWARDS-007",
            f"{parts.hostname}: no password belongs in an address; put a token in the variable {TOKEN}",
        )
    return parts.netloc + parts.path.rstrip("/")


def _token() -> str:
    token = os.environ.get(TOKEN, "").strip()
    if not all("!" <= c <= "~" for c in token):
        raise errors.ConfigError(
            "JI-REWARDS-008", f"{TOKEN} holds a character that no header may have; set it again"
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


class Client:
    """Asks one server. `versions` are those that it gave, in order of appearance."""

    def __init__(self, url: str, config: HttpConfig):
        self.name, self.versions = name_of(url), []
        self._url, self._config, self._token = url, config, _token()
        self._opener = _opener(urllib.parse.urlsplit(url).hostname)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def score(
        self, items: Sequence[dict], failed: Callable[[int, str], None]
    ) -> list[outcomes.Outcome]:
        """The outcomes of items, in their order.

        failed(number of its first item, text) is told of each batch that failed for good, and may raise an error to
        end the asking. All items of such a batch have the fault "timeout" or "error".
        """
        found: list = [None] * len(items)
        stop = self._stop = threading.Event()
        pool = concurrent.futures.ThreadPoolExecutor(self._config.connections)
        try:
            futures = {
                pool.submit(self._batch, items[first : first + self._config.batch], first, stop): first
                for first in range(0, len(items), self._config.batch)
            }  # fmt: skip
            for future in concurrent.futures.as_completed(futures):
                first, got = futures[future], future.result()
                if isinstance(got, _Failure):
                    count = min(self._config.batch, len(items) - first)
                    found[first : first + count] = [
                        outcomes.Outcome(math.nan, got.fault, got.text)
                    ] * count
                    failed(first, got.text)
                else:
                    found[first : first + len(got)] = got
        finally:
            # After an error requests that are under way are left to themselves: they end by their timeout.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return found

    def _batch(
        self, items: Sequence[dict], seed: int, stop: threading.Event
    ) -> list[outcomes.Outcome] | _Failure:
        """Outcomes of one batch, asked up to 1 + retries times."""
        try:
            body = json.dumps({"items": items}, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.DataError(
                "JI-REWARDS-009",
                f"reward {self.name}: rows {items[0]['id']} to {items[-1]['id']} cannot be written as JSON ({error})",
            ) from None
        chance = random.Random(seed)  # the same pauses whenever the same is asked
        for attempt in range(1 + self._config.retries):
            got = self._try(body, len(items))
            if not isinstance(got, _Failure):
                return got
            pause = self._config.backoff * 2**attempt * (0.5 + chance.random())
            pause = min(max(pause, got.wait), LONGEST_WAIT)
            is_last = attempt == self._config.retries
            if is_last or not got.is_passing or stop.wait(pause):
                break
        return got

    def _try(self, body: bytes, count: int) -> list[outcomes.Outcome] | _Failure:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"jinstr/{jinstr.__version__}",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        deadline = time.monotonic() + self._config.timeout
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                reply = _read(response, deadline)
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            if _is_timeout(error):
                text = f"no reply after {self._config.timeout:g} seconds"
                return _Failure("timeout", text, is_passing=True)
            text = self._clean(f"{type(error).__name__}: {error}")
            return _Failure("error", text, is_passing=True)
        return self._parsed(reply, count)

    def _refused(self, error: urllib.error.HTTPError) -> _Failure:
        """The failure that a status other than 2xx is."""
        with error:
            try:
                told = error.read1(2000).decode("utf-8", "replace")
            except (OSError, http.client.HTTPException):
                told = ""
            wait = error.headers.get("Retry-After", "")
        hint = " (give the address that it redirects to)" if 300 <= error.code < 400 else ""
        text = self._clean(f"status {error.code} {error.reason}{hint}: {told}")
        passing = error.code == 429 or error.code >= 500
        return _Failure("error", text, passing, float(wait) if wait.isdecimal() else 0.0)

    def _parsed(self, reply: bytes, count: int) -> list[outcomes.Outcome] | _Failure:
        """Outcomes of a reply that came whole."""

        def wrong(words: str) -> _Failure:
            shown = reply[:2000].decode("utf-8", "replace")
            return _Failure("error", self._clean(f"{words}: {shown}"), is_passing=False)

        try:
            values = json.loads(reply)
        except (ValueError, RecursionError):
            return wrong("the reply is not JSON")
        scores = values.get("scores") if isinstance(values, dict) else None
        if not isinstance(scores, list):
            return wrong('the reply has no list "scores"')
        if len(scores) != count:
            return wrong(f"the reply has {len(scores)} scores for {count} answers")
        for place, value in enumerate(scores):
            if value is not None and type(value) not in (int, float):
                return wrong(
                    f"score {place} of the reply is {value!r:.40}, neither number nor null"
                )
        self._note_version(values.get("version"))
        return [outcomes.of(value) for value in scores]

    def _note_version(self, version) -> None:
        if version is None:
            return
        with self._lock:
            if (version := self._clean(str(version))) not in self.versions:
                self.versions.append(version)

    def _clean(self, text: str) -> str:
        """The text in one line and without secrets, also where a server sends the token back."""
        text = text.replace(self._token, redact.MARK) if self._token else text
        return " ".join(redact.text(text).split())[:MOST_TEXT]

    def close(self) -> None:
        """Batches under way are not asked again."""
        self._stop.set()


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
