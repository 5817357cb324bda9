"""A judge behind chat completions, with all that goes wrong between it and us."""

import json
import time

import pytest

from jinstr import errors
from jinstr.evaluate import judge_http
from tests.evaluate import chat_server

TOKEN = "sesame-open-4711"


def chat(server, **settings):
    config = judge_http.HttpConfig(
        **{"timeout": 20.0, "retries": 2, "connections": 2, "backoff": 0.01} | settings
    )
    return judge_http.Chat(server.url, "gpt-x", config, temperature=0.0, max_tokens=64, seed=3)


def ask(found, count=3):
    asked = [[{"role": "user", "content": f"質問{n}"}] for n in range(count)]
    replies = dict(found.ask_each(asked))
    assert sorted(replies) == list(range(count))
    return [replies[n] for n in range(count)]


def test_what_is_sent_and_read(server):
    server.answer = lambda messages: messages[-1]["content"] + "への答え\ud83d"
    replies = ask(chat(server), 5)
    assert [r.text for r in replies] == [f"質問{n}への答え?" for n in range(5)]
    assert {(r.finish, r.fault, r.tokens) for r in replies} == {("stop", "", 15)}
    fields, headers, _ = server.requests[0]
    del fields["messages"]
    assert fields == {"model": "gpt-x", "temperature": 0.0, "max_tokens": 64, "seed": 3}
    assert "Authorization" not in headers and server.most_at_once <= 2


@pytest.mark.parametrize(
    "fault, kind",
    [
        (chat_server.status(500, "down"), "error"),
        (chat_server.status(429, "too many", Retry_After="0"), "error"),
        (chat_server.drop, "error"),
        (chat_server.half, "error"),
        (chat_server.slow, "timeout"),
    ],
    ids=["500", "429", "drop", "half", "slow"],
)
def test_what_passes_is_asked_again(server, fault, kind):
    found = chat(server, timeout=0.3 if kind == "timeout" else 20.0, connections=1)
    server.script.extend([fault, fault])
    assert [r.text for r in ask(found)] == ["[[C]]"] * 3
    assert len(server.requests) == 5
    server.script.extend([fault] * 3)  # once more than it is asked again
    replies = ask(found)
    assert [r.fault for r in replies] == [kind, "", ""] and replies[0].why
    assert len(server.requests) == 5 + 5


def test_retry_after_is_kept(server):
    server.script.append(chat_server.status(429, "wait", Retry_After="1"))
    ask(chat(server), 1)
    times = [when for _, _, when in server.requests]
    assert 1.0 <= times[1] - times[0]


@pytest.mark.parametrize(
    "step, words",
    [
        (chat_server.status(400, "no such model"), "status 400 Bad Request: no such model"),
        (chat_server.status(307, "", Location="/other"), "redirects to"),
        (chat_server.status(200, "<html>"), "is not JSON: <html>"),
        (chat_server.status(200, "[" * 100_000), "is not JSON"),
        (chat_server.status(200, '{"choices": []}'), "no choices[0].message.content"),
        (chat_server.status(200, '{"error": "busy"}'), "busy"),
        (chat_server.saying(None), "is no text"),
    ],
    ids=["400", "307", "html", "deep", "empty", "error", "null"],
)
def test_what_does_not_pass_is_not_asked_again(server, step, words):
    server.script.append(step)
    replies = ask(chat(server, connections=1))
    assert [r.fault for r in replies] == ["error", "", ""] and words in replies[0].why
    assert len(server.requests) == 3


def test_the_token_goes_to_the_server_alone(server, monkeypatch):
    monkeypatch.setenv(judge_http.TOKEN, TOKEN)

    def echo(handler, body):
        chat_server.reply(handler, 403, f"denied: {handler.headers['Authorization']}")

    server.script.extend([echo, lambda h, b: chat_server.say(h, h.headers["Authorization"])])
    replies = ask(chat(server, connections=1))
    assert server.requests[0][1]["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in str(replies) and "denied: Bearer" in replies[0].why
    with pytest.raises(errors.ConfigError, match=judge_http.TOKEN):
        judge_http.Chat(
            "http://u:p@host/v1", "m", judge_http.HttpConfig(), temperature=0, max_tokens=1, seed=0
        )


def test_many_failures_in_a_row_end_the_asking(server):
    server.script.extend([chat_server.status(401, "who are you")] * 100)
    replies = ask(chat(server, connections=1), 60)
    faults = [r.fault for r in replies]
    assert faults.count("error") <= judge_http.MOST_IN_A_ROW + 2
    assert faults.count("skipped") >= 60 - judge_http.MOST_IN_A_ROW - 2
    assert len(server.requests) == faults.count("error")
    # Negative control: failures with answers between them do not.
    server.script.clear()
    for _ in range(30):
        server.script.extend([chat_server.status(401, "who"), chat_server.saying("[[A]]")])
    assert [r.fault for r in ask(chat(server, connections=1), 60)].count("skipped") == 0


def test_an_interrupt_leaves_at_once(server):
    server.script.extend([chat_server.slow] * 4)
    started = time.monotonic()
    for _ in chat(server, connections=2).ask_each([[{"role": "user", "content": "a"}]] * 40):
        break
    assert time.monotonic() - started < 5 and len(server.requests) < 40


@pytest.mark.parametrize(
    "settings", [{"timeout": 0}, {"retries": -1}, {"connections": 0}, {"backoff": -1}]
)
def test_settings_that_cannot_be(settings):
    with pytest.raises(errors.ConfigError, match=next(iter(settings))):
        judge_http.HttpConfig(**settings)


def test_requests_are_json_without_surprises(server):
    ask(chat(server), 1)
    assert json.dumps(server.requests[0][0]["messages"], ensure_ascii=False) == (
        '[{"role": "user", "content": "質問0"}]'
    )
