"""Starts runs by fork from a process that has imported jinstr and started nothing.

A run is then a process of its own with its own command line and environment, as if started from a shell, without the
seconds that importing takes. Reads {"words", "environment", "folder", "output"} as lines of JSON on stdin; writes
{"pid"} for each at once and {"pid", "status"} when it ended (negative: by that signal).
"""

import json
import os
import select
import sys

import matplotlib.backends.backend_agg  # noqa: F401
import matplotlib.figure  # noqa: F401

import jinstr.commands.dpo
import jinstr.commands.grpo
import jinstr.commands.ppo
import jinstr.commands.pretrain
import jinstr.commands.resume
import jinstr.commands.reward
import jinstr.commands.sft
import jinstr.train.report  # noqa: F401
from jinstr import run


def say(**facts):
    os.write(1, (json.dumps(facts) + "\n").encode())


def become(request):
    """In the child: take over its output, environment and folder."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 64)
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])


def serve():
    """Fork a child for every request; returns the command line in a child, None at the end in the parent."""
    children, open_input, rest = set(), True, b""
    while open_input or children:
        ready, _, _ = select.select([0] if open_input else [], [], [], 0.01)
        if ready:
            data = os.read(0, 1 << 16)
            open_input = bool(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if not pid:
                    become(request)
                    return request["words"]
                children.add(pid)
                say(pid=pid)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            children.discard(pid)
            say(pid=pid, status=os.waitstatus_to_exitcode(status))
    return None


if __name__ == "__main__":
    words = serve()
    if words is not None:
        sys.argv[1:] = words
        sys.exit(run.console())
