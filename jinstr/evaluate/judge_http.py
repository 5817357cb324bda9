"""A judge behind an address that speaks OpenAI's chat completions: OpenAI, Azure, vLLM, llama.cpp and others.

Sent by POST to URL/chat/completions: {"model", "messages", "temperature", "max_tokens", "seed"}. With
JINSTR_JUDGE_TOKEN in the environment its value goes along as `Authorization: Bearer …`. What is asked again is said in
jinstr/posting.py.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jinstr import errors, posting

TOKEN = "JINSTR_JUDGE_TOKEN"
MOST_IN_A_ROW = 20  # requests that failed for good one after another, after which no more are made


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """How a server is asked."""

    timeout: float = 120.0  # seconds of one request
    retries: int = 4  # so often a request is made again
    connections: int = 4  # requests at the same time
    backoff: float = 1.0  # seconds before the second request; doubled after each, varied by half

    def __post_init__(self):
        wanted = {
            "timeout": (self.timeout > 0, "seconds above 0"),
            "retries": (self.retries >= 0, "0 or more"),
            "connections": (self.connections >= 1, "1 or more"),
            "backoff": (self.backoff >= 0, "seconds from 0 on"),
        }
        for name, (is_right, words) in wanted.items():
            if not is_right:
                raise errors.ConfigError(
                    "JI-JUDGE-009", f"{name} = {getattr(self, name)!r}: give {words}"
                )


class Reply(NamedTuple):
    """What a judge wrote, or why it did not."""

    text: str
    finish: str = ""  # stop | length | …, as the server says; length: the text was cut
    fault: str = ""  # timeout | error | long | skipped: nothing was written
    why: str = ""  # what is told of the fault
    tokens: int = 0  # of prompt and text together, where the server says so


class Chat:
    """Asks one server."""

    def __init__(
        self, url: str, model: str, config: HttpConfig, *, temperature: float, max_tokens: int, seed: int
    ):  # fmt: skip
        address = url.rstrip("/") + "/chat/completions"
        self._poster = posting.Poster(
            address, token=TOKEN, timeout=config.timeout, retries=config.retries, backoff=config.backoff
        )  # fmt: skip
        self._config = config
        self._fixed = {
            "model": model,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
        }

    def ask_each(self, asked: Sequence[Sequence[dict[str, str]]]) -> Iterator[tuple[int, Reply]]:
        """(number, reply) of every conversation, as they come.

        After MOST_IN_A_ROW failures one after another the rest has the fault "skipped": a wrong token or a server that
        is down would fail all of them.
        """
        stop = threading.Event()
        pool = concurrent.futures.ThreadPoolExecutor(self._config.connections)
        try:
            futures = {pool.submit(self._ask, m, n, stop): n for n, m in enumerate(asked)}
            failures = 0
            for future in concurrent.futures.as_completed(futures):
                reply = future.result()
                is_failure = reply.fault in ("timeout", "error")
                failures = failures + 1 if is_failure else 0
                if failures >= MOST_IN_A_ROW:
                    stop.set()
                yield futures[future], reply
        finally:
            # Interrupted, requests that are under way are left to themselves: they end by their timeout.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, messages: Sequence[dict[str, str]], seed: int, stop: threading.Event) -> Reply:
        if stop.is_set():
            return Reply("", fault="skipped", why=f"after {MOST_IN_A_ROW} failures in a row")
        body = json.dumps(self._fixed | {"messages": messages}).encode()
        got = self._poster.post(body, self._parsed, seed=seed, stop=stop)
        return Reply("", fault=got.fault, why=got.text) if isinstance(got, posting.Failure) else got

    def _parsed(self, reply: bytes) -> Reply | posting.Failure:
        try:
            values = json.loads(reply)
            choice = values["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, RecursionError):
            return self._poster.wrong("the reply is not JSON", reply)
        except (KeyError, IndexError, TypeError):
            return self._poster.wrong("the reply has no choices[0].message.content", reply)
        if not isinstance(text, str):
            return self._poster.wrong("the content of the reply is no text", reply)
        usage = values.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
        finish = choice.get("finish_reason")
        # A text may be cut within a character: half of a surrogate pair cannot be written down.
        whole = text.encode("utf-8", "replace").decode()
        return Reply(
            self._poster.hide(whole),
            finish=finish if isinstance(finish, str) else "",
            tokens=tokens if isinstance(tokens, int) else 0,
        )
