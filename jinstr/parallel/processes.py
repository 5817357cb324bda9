"""Several processes of one run: how they meet, and how one that ends takes the others with it.

Each process is started with the same command. One that ends with an error says so in the key-value store of JAX's
coordination service, where all others look twice a second, and leave too: none hangs in a collective that will never be
complete. One that dies without a word is noticed by a collective that fails (76), or by its missing heartbeats (JAX
itself ends the others then, with 134). JAX is imported by `start` only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from jinstr import errors
from jinstr.parallel import addresses

HEARTBEAT_SECONDS = 30  # without a sign of life of a process, after which JAX ends all others
LOOK_SECONDS = 0.5  # between looks at whether another process has ended
LEAVE_SECONDS = 6.0  # that a process which ends waits for the others to have noticed
# Seconds to end by itself, too, where another one ended so; for other statuses, a look.
PATIENCE = {65: 5.0, 75: 5.0, 78: 5.0}
# Statuses that are true of the whole run: the others end with the same one. Any other is that of a lost peer to them.
SHARED = (65, 70, 71, 73, 74, 75, 78)
LOST = errors.PeerError.exit_code
_ENDED, _LEFT = "jinstr/ended", "jinstr/left/"

_here = addresses.Address("", 1, 0)
_client: Any = None
_listener: threading.Thread | None = None
_over = threading.Event()  # this process is about to end
_last_word: Callable[[int, str], None] = print  # told of an end that another process brings


def count() -> int:
    """Processes of this run."""
    return _here.count


def index() -> int:
    """Number of this process, from 0; the first one writes what all share."""
    return _here.index


def client() -> Any:
    """JAX's client of the coordination service; None where the process is alone."""
    return _client


def start(last_word: Callable[[int, str], None]) -> None:
    """Meet the other processes, where there are any. To be called before JAX starts a backend, and before handlers of
    signals are set: JAX sets some of its own.

    last_word(status, words) is called before this process ends because of another one.
    Errors: ConfigError of addresses.find; PeerError where the others do not come.
    """
    global _here, _client, _last_word, _listener
    address = addresses.find(os.environ) or addresses.of_tpu()
    if address is None or _client is not None:
        return
    import jax
    from jax._src import distributed

    try:
        jax.distributed.initialize(
            address.coordinator,
            address.count,
            address.index,
            None if address.device is None else [address.device],
            cluster_detection_method="deactivate",
            initialization_timeout=addresses.START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise errors.PeerError(
            "JI-PEER-003",
            f"process {address.index} of {address.count} (told by {address.told_by}) did not meet the others at "
            f"{address.coordinator}: {' '.join(str(error).split())[:300]}",
        ) from None
    _here, _client, _last_word = address, distributed.global_state.client, last_word
    print(
        f"jinstr: process {address.index} of {address.count}, met at {address.coordinator}",
        flush=True,
    )
    if address.index:
        # What all of them do alike, the first one tells.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for good)
    _listener = threading.Thread(target=_listen, name="processes", daemon=True)
    _listener.start()


def _ended() -> dict | None:
    """What the first process that ended with an error said."""
    with contextlib.suppress(Exception):  # nobody has ended, or there is no service any more
        return json.loads(_client.key_value_try_get(_ENDED))
    return None


def _listen() -> None:
    """In a thread: has another process ended?"""
    while not _over.wait(LOOK_SECONDS):
        if told := _ended():
            break
    else:
        return
    if _over.wait(PATIENCE.get(told["status"], LOOK_SECONDS)):
        return  # it ends by itself
    status = _own_status(told)
    words = f"JI-PEER-002: process {told['index']} of {count()} ended with {told['status']}; its log says why"
    os.write(2, f"\njinstr: {words}\n".encode())
    _last_word(status, words)
    _go(status)


def _own_status(told: dict) -> int:
    """The exit status of a process that ends because another one did."""
    return told["status"] if told["status"] in SHARED else LOST


def _go(status: int) -> None:
    """os._exit, when the others have noticed."""

    def tell() -> None:
        with contextlib.suppress(Exception):
            _client.key_value_set(f"{_LEFT}{index()}", "")
            limit = time.monotonic() + LEAVE_SECONDS
            # The first one holds the service that the others ask.
            while time.monotonic() < limit and len(_client.key_value_dir_get(_LEFT)) < count():
                time.sleep(0.05)
            time.sleep(0.2 * (index() == 0))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(LEAVE_SECONDS + 1.0)  # a service that is gone may not answer
    os._exit(status)


def leave(status: int) -> None:
    """End this process of several with an error, and so the others. Does not return; does nothing where it is alone."""
    if _client is None:
        return
    _over.set()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()

    told: dict = {}

    def tell() -> None:
        own = {"index": index(), "status": status}
        with contextlib.suppress(Exception):  # another one was first
            _client.key_value_set(_ENDED, json.dumps(own))
        told.update(_ended() or own)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    teller.join(1.0)
    # A collective that failed may be another's end, which knows more.
    _go(_own_status(told) if told and status == LOST and told["index"] != index() else status)


def finish() -> None:
    """Wait until every process is done, and let go of the others. For the end of a run without an error."""
    global _client
    if _client is None:
        return
    import jax

    _client.wait_at_barrier("jinstr/done", 24 * 3600 * 1000)
    _over.set()
    _listener.join()  # Python's end would cut it off inside of the client, which aborts
    jax.distributed.shutdown()
    _client = None
