"""Scores from a server: batches of answers as JSON over HTTP, several at a time, asked again where that may help.

Sent by POST:   {"items": [{"id", "messages": [{"role", "content"}, …], "answer", "row", "ended"}, …]}
Wanted back:    {"scores": [number or null, …], "version": "…"}        one score for each item, in order

With JINSTR_REWARD_TOKEN in the environment its value goes along as `Authorization: Bearer …`; what is asked again, and
what is not, is said in jinstr/posting.py.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import math
import threading
from collections.abc import Callable, Sequence

from jinstr import errors, posting
from jinstr.rlhf import outcomes

TOKEN = "JINSTR_REWARD_TOKEN"


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
    return posting.name_of(url, TOKEN)


class Client:
    """Asks one server. `versions` are those that it gave, in order of appearance."""

    def __init__(self, url: str, config: HttpConfig):
        self._poster = posting.Poster(
            url, token=TOKEN, timeout=config.timeout, retries=config.retries, backoff=config.backoff
        )
        self.name, self.versions, self._config = self._poster.name, [], config
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
                if isinstance(got, posting.Failure):
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
    ) -> list[outcomes.Outcome] | posting.Failure:
        """Outcomes of one batch, asked up to 1 + retries times."""
        try:
            body = json.dumps({"items": items}, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.DataError(
                "JI-REWARDS-009",
                f"reward {self.name}: rows {items[0]['id']} to {items[-1]['id']} cannot be written as JSON ({error})",
            ) from None
        parse = functools.partial(self._parsed, count=len(items))
        return self._poster.post(body, parse, seed=seed, stop=stop)

    def _parsed(self, reply: bytes, count: int) -> list[outcomes.Outcome] | posting.Failure:
        """Outcomes of a reply that came whole."""
        wrong = functools.partial(self._poster.wrong, reply=reply)
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
            if (version := self._poster.clean(str(version))) not in self.versions:
                self.versions.append(version)

    def close(self) -> None:
        """Batches under way are not asked again."""
        self._stop.set()
