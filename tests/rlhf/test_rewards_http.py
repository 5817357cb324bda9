"""Servers that give scores, with all that goes wrong between them and us."""

import random
import socket
import time

import numpy as np
import pytest

from jinstr import errors, posting, redact
from jinstr.rlhf import rewards, rewards_http
from tests.rlhf import asking

TOKEN = "sesame-open-4711"


def ask(found, count=3):
    return rewards.score(found, [asking.asked("あ" * (n + 1), id=f"q{n}") for n in range(count)])


def faults(scores):
    (found,) = scores.faults.values()
    return found


def test_what_is_sent_and_that_scores_come_in_order(opened, server):
    def slowly(handler, items):
        time.sleep(0.3)
        asking.reply(handler, 200, {"scores": [len(item["answer"]) for item in items]})

    server.script.append(slowly)
    found = opened(server.url, http_batch=3, http_connections=2)
    scores = ask(found, 14)
    assert scores.total.tolist() == list(range(1, 15)) and scores.notes == ()
    assert sorted(len(items) for items, _, _ in server.requests) == [2, 3, 3, 3, 3]
    assert server.most_at_once == 2
    items = sorted((item for items, _, _ in server.requests for item in items), key=str)
    assert items[0] == {
        "id": "q0",
        "messages": [{"role": "user", "content": "質問"}],
        "answer": "あ",
        "row": {"id": "q0"},
        "ended": True,
    }
    assert "Authorization" not in server.requests[0][1]
    alone = ask(opened(server.url, http_batch=1, http_connections=1), 14)
    np.testing.assert_array_equal(alone.total, scores.total)
    assert len(server.requests) == 5 + 14


def drop(handler, items):
    handler.connection.close()


def half(handler, items):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"scores": [1, 2, 3]}')


def slow(handler, items):
    time.sleep(0.7)
    asking.reply(handler, 200, {"scores": [1] * len(items)})


def drip(handler, items):
    """Every byte comes soon after the last, the reply never ends."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ((500, "down"), "error"),
        ((503, "down"), "error"),
        ((429, "too many"), "error"),
        (drop, "error"),
        (half, "error"),
        (slow, "timeout"),
        (drip, "timeout"),
    ],
    ids=["500", "503", "429", "drop", "half", "slow", "drip"],
)
def test_what_passes_is_asked_again(opened, server, fault, kind):
    found = opened(server.url, timeout=0.4 if kind == "timeout" else 20.0, retries=2)
    server.script.extend([fault, fault])
    scores = ask(found)
    assert scores.total.tolist() == [1, 2, 3] and scores.notes == () and faults(scores) == {}
    assert len(server.requests) == 3
    server.script.extend([fault] * 3)  # once more than it is asked again
    scores = ask(found)
    assert np.isnan(scores.total).all() and faults(scores) == {kind: 3}
    assert len(server.requests) == 6
    assert f"{kind}, 3 of 3 answers, the first at row q0" in scores.notes[0]
    assert rewards.metrics(scores)[f"reward/{found[0].name}/{kind}_rate"] == 1.0
    assert ask(found).total.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, "bad", "status 400 Bad Request: bad"),
        (404, "", "status 404"),
        (200, {"scores": [1, 2]}, "2 scores for 3 answers"),
        (200, {"scores": [1, 2, 3, 4]}, "4 scores for 3 answers"),
        (200, {"scores": [1, "NaN", 3]}, "score 1 of the reply is 'NaN'"),
        (200, {"scores": [1, True, 3]}, "score 1 of the reply is True"),
        (200, {"scores": [1, [2], 3]}, "score 1 of the reply is"),
        (200, {"scores": 1}, "no list"),
        (200, [1, 2, 3], "no list"),
        (200, "<html>", "is not JSON: <html>"),
        (200, "", "is not JSON"),
        (200, "[" * 100_000, "is not JSON"),
    ],
)
def test_what_does_not_pass_is_not_asked_again(opened, server, status, body, words):
    server.script.append((status, body))
    found = opened(server.url, http_batch=3, http_connections=1)
    scores = ask(found, 5)
    np.testing.assert_array_equal(scores.total, [np.nan, np.nan, np.nan, 4, 5])
    assert faults(scores) == {"error": 3} and words in scores.notes[0]
    assert len(server.requests) == 2


def test_scores_that_are_none(opened, server):
    server.script.append((200, '{"scores": [null, NaN, Infinity, -Infinity, 1e39, 0, -2.5]}'))
    scores = ask(opened(server.url), 7)
    np.testing.assert_array_equal(scores.total, [*[np.nan] * 5, 0, -2.5])
    assert faults(scores) == {"infinite": 3}
    found = rewards.metrics(scores)
    assert found["reward/nan_rate"] == 5 / 7 and found["reward/mean"] == -1.25


def test_stop_ends_the_run(opened, server):
    server.script.extend([(200, {"scores": [1, 2]}), (500, "down")])
    found = opened(server.url, on_error="stop", http_batch=2, http_connections=1, retries=0)
    with pytest.raises(errors.DataError, match=r"row q2: status 500 Internal Server Error: down"):
        ask(found, 8)
    assert ask(found, 8).total.tolist() == list(range(1, 9))


def test_nobody_listens(opened):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        scores = ask(opened(f"http://127.0.0.1:{taken.getsockname()[1]}/", retries=1))
    assert np.isnan(scores.total).all() and "refused" in scores.notes[0]


def test_pauses_grow_and_are_the_same_every_time(opened, server):
    server.script.extend([(500, "")] * 3)
    found = opened(server.url, backoff=0.1)
    ask(found)
    times = [when for _, _, when in server.requests]
    chance = random.Random(0)
    for attempt, pause in enumerate(np.diff(times)):
        wanted = 0.1 * 2**attempt * (0.5 + chance.random())
        assert wanted <= pause < wanted + 1.0
    # A server may ask for more time.
    server.script.append(lambda handler, items: asking.reply(handler, 503, "", Retry_After="1"))
    began = time.monotonic()
    assert ask(found).total.tolist() == [1, 2, 3] and time.monotonic() - began >= 1


def test_versions_are_kept_and_a_change_is_told(opened, server):
    def version(name):
        return 200, {"scores": [1, 2, 3], "version": name}

    server.script.extend([version("a"), version("a"), version("b"), version("a")])
    found = opened(server.url)
    first, second, third, fourth, without = [ask(found) for _ in range(5)]
    name = found[0].name
    assert first.versions == second.versions == {name: ("a",)}
    assert first.notes == second.notes == ()
    assert third.versions == {name: ("a", "b")}
    assert third.notes == (f"reward {name}: its version changed: a → b",)
    assert fourth.notes == without.notes == () and without.versions == third.versions
    assert rewards.metrics(second)[f"reward/{name}/versions"] == 1
    assert rewards.metrics(third)[f"reward/{name}/versions"] == 2


def test_the_token_goes_to_the_server_alone(opened, server, monkeypatch):
    monkeypatch.setenv(rewards_http.TOKEN, TOKEN)

    def echo(handler, items):
        asking.reply(handler, 403, f"denied: {handler.headers['Authorization']}")

    server.script.append(echo)
    scores = ask(opened(server.url))
    assert server.requests[0][1]["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in str(scores.notes) and f"denied: Bearer {redact.MARK}" in scores.notes[0]
    monkeypatch.setenv(rewards_http.TOKEN, "short")  # too short to be looked for elsewhere
    server.script.append(echo)
    assert "short" not in str(ask(opened(server.url)).notes)
    monkeypatch.setenv(rewards_http.TOKEN, "sesame\nopen")
    with pytest.raises(errors.ConfigError, match=rewards_http.TOKEN) as caught:
        opened(server.url)
    assert "sesame" not in str(caught.value)


def test_redirections_are_not_followed(opened, server):
    other = server.url.replace("/score", "/other")
    server.script.append(lambda handler, items: asking.reply(handler, 307, "", Location=other))
    scores = ask(opened(server.url))
    assert "status 307" in scores.notes[0] and "redirects to" in scores.notes[0]
    assert len(server.requests) == 1


def test_a_proxy_is_not_asked_for_what_is_here(opened, server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(opened(server.url)).total.tolist() == [1, 2, 3]


def test_a_reply_without_end_is_refused(opened, server, monkeypatch):
    monkeypatch.setattr(posting, "MOST_BYTES", 1000)
    server.script.append((200, {"scores": [1, 2, 3], "more": "x" * 2000}))
    scores = ask(opened(server.url, retries=0))
    assert "more than 1000 bytes" in scores.notes[0] and np.isnan(scores.total).all()


def test_rows_that_are_no_json(opened, server):
    with pytest.raises(errors.DataError, match="rows q1 to q1 cannot be written as JSON"):
        rewards.score(opened(server.url), [asking.asked(id="q1", value={1, 2})])
    assert server.requests == []


@pytest.mark.parametrize("url", ["http://", "http://host:port/", "http://a b/", "https:///path"])
def test_addresses_that_cannot_be_used(opened, url):
    with pytest.raises(errors.ConfigError, match="is no address"):
        opened(url)


def test_no_password_in_an_address(opened):
    with pytest.raises(errors.ConfigError, match=rewards_http.TOKEN) as caught:
        opened("http://user:pass-word@host:80/score")
    assert "pass-word" not in str(caught.value)
