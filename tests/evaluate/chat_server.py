"""A real server of OpenAI's chat completions: scripted steps first, then answers by a function of the conversation."""

import collections
import http.server
import json
import threading
import time


class Server:
    """`script`: what it does with the next requests, functions of (handler, request); then `answer(messages)`."""

    def __init__(self, answer=lambda messages: "[[C]]"):
        self.answer = answer
        self.script = collections.deque()
        self.requests = []  # (fields, headers, when)
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                server.handle(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.requests.append((body, dict(handler.headers), time.monotonic()))
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            step = self.script.popleft() if self.script else None
        try:
            if handler.path != "/v1/chat/completions":
                reply(handler, 404, "not found")
            elif step is not None:
                step(handler, body)
            else:
                say(handler, self.answer(body["messages"]))
        except OSError:  # nobody listens any more
            pass
        finally:
            with self.lock:
                self.at_once -= 1

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def reply(handler, status, body, **headers):
    body = body.encode()
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def say(handler, text, finish="stop"):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    found = {"object": "chat.completion", "choices": [choice], "usage": usage}
    reply(handler, 200, json.dumps(found), Content_Type="application/json")


def status(code, text="", **headers):
    """A step: answer with this status."""
    return lambda handler, body: reply(handler, code, text, **headers)


def saying(text, finish="stop"):
    """A step: the judge says this."""
    return lambda handler, body: say(handler, text, finish)


def drop(handler, body):
    handler.connection.close()


def half(handler, body):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "[[A]]')


def slow(handler, body):
    time.sleep(0.6)
    say(handler, "[[A]]")
