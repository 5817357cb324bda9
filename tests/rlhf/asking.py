"""What the tests of rewards share: answers to score, a module of functions as users write them, a server."""

import collections
import http.server
import json
import threading
import time

from jinstr.rlhf import rewards

FUNCTIONS = """
import os, re, subprocess, sys, time
import numpy as np

def length(prompt, answer, row):
    return len(answer)

def number_of_row(prompt, answer, row):
    time.sleep(row.get("seconds", 0))
    return row["number"]

def process(prompt, answer, row):
    time.sleep(0.1)
    return os.getpid()

def modules(prompt, answer, row):
    return sum(name.split(".")[0] in ("jax", "jaxlib", "gin") for name in sys.modules)

def noisy(prompt, answer, row):
    print("token", os.environ["JINSTR_REWARD_TOKEN"])
    row["number"] = prompt[-1]["content"] = None
    return row.get("weight", 1.0)

def acts(prompt, answer, row):
    act = row["act"]
    if act == "raise":
        raise ValueError("two\\nlines of " + "hf_" + "a" * 30)
    if act == "exit":
        sys.exit("enough")
    if act == "die":
        os._exit(3)
    if act == "kill":
        os.kill(os.getpid(), 9)
    if act == "sleep":
        time.sleep(60)
    if act == "regex":  # never lets another thread of its process run
        re.fullmatch("(a+)+b", "a" * 60)
    if act == "child":
        child = subprocess.Popen(["sleep", "60"])
        open(row["file"], "w").write(str(child.pid))
        time.sleep(60)
    values = {"none": None, "nan": float("nan"), "inf": float("inf"), "huge": 10**400, "large": -1e39,
              "text": "3", "list": [1.0], "array": np.ones(1), "complex": 1j, "true": True, "false": np.False_,
              "f32": np.float32(0.5), "zero": 0, "most": 3e38}
    return values[act]
"""


def asked(answer="はい", ended=True, /, **row):
    return rewards.Asked(({"role": "user", "content": "質問"},), answer, row, ended)


class Server:
    """A real server. `script` holds what it does with the next requests; after that it scores by length.

    An entry is a function of the handler, which may reply or not, or a status with a body.
    """

    def __init__(self):
        self.script = collections.deque()
        self.requests = []  # (items, headers, when)
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
        # Polled often, so that the end of a test waits for little.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/score"

    def handle(self, handler):
        items = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))["items"]
        with self.lock:
            self.requests.append((items, dict(handler.headers), time.monotonic()))
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            step = self.script.popleft() if self.script else None
        try:
            if callable(step):
                step(handler, items)
            else:
                scores = {"scores": [len(item["answer"]) for item in items]}
                reply(handler, *(step or (200, scores)))
        except OSError:  # nobody listens any more
            pass
        finally:
            with self.lock:
                self.at_once -= 1

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def reply(handler, status, body, **headers):
    body = (body if isinstance(body, str) else json.dumps(body)).encode()
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
