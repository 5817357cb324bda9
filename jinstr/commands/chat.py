"""`jinstr chat`: talk to a model in the terminal, or through a pipe, one question a line."""

from __future__ import annotations

import sys

from jinstr import errors
from jinstr.decode import sampler as sampler_lib
from jinstr.decode import text as text_lib
from jinstr.train import serving

HELP = """/reset  会話を最初から始める (forget the conversation)
/quit   終わる (leave; so does the end of input)
/help   この説明 (this help)"""


def chat(
    *,
    run_dir: str,
    system: str,
    sampling: sampler_lib.SamplingConfig,
    step: int | None,
    weights: str,
    template: str,
) -> None:
    """Read questions from standard input, stream the answers, keep the conversation.

    The n-th answer of a session depends on the seed, n and the conversation. When the conversation no longer fits the
    model, its oldest turns are forgotten, and that is said.
    """
    run = serving.load_run(run_dir, step, weights=weights, template=template)
    if run.template is None:
        raise errors.ConfigError(
            "JI-CHAT-001",
            f"{run_dir} was trained without a chat template; name one with TEMPLATE=…, or use "
            "`jinstr generate`, which continues plain text",
        )
    sampler = text_lib.TextSampler(*run[:4], sampling)
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{run_dir}, step {run.step}\n{HELP}")
    opening = [{"role": "system", "content": system}] if system else []
    history, count = list(opening), 0
    while (line := read_line(terminal)) is not None:
        if line == "/quit":
            return
        if line == "/reset":
            history = list(opening)
        elif line == "/help":
            print(HELP)
        elif line.startswith("/"):
            print(f"{line.split()[0]}: 不明な命令です (unknown command)\n{HELP}")
        elif line:
            history.append({"role": "user", "content": line})
            history, prompt = fit(sampler, history, len(opening))
            if prompt is None:
                history.pop()
                print("[長すぎます / too long for the model]")
                continue
            answer = ""
            for piece in sampler.stream(prompt, text_lib.row_id("chat", count)):
                print(piece, end="", flush=True)
                answer += piece
            print(flush=True)
            history.append({"role": "assistant", "content": answer})
            count += 1


def read_line(terminal: bool) -> str | None:
    """The next line without outer white space; None at the end of input or on Ctrl-C."""
    try:
        return input("> " if terminal else "").strip()
    except (EOFError, KeyboardInterrupt):
        if terminal:
            print()
        return None


def fit(sampler: text_lib.TextSampler, history: list[dict], keep: int):
    """(history, prompt ids) with the oldest turns after the first `keep` left out until it fits; ids None if never."""
    forgotten = 0
    while True:
        prompt = sampler.prompt_ids(history)
        if len(prompt) <= sampler.longest_prompt:
            break
        if len(history) - keep < 3:  # only the question is left
            return history, None
        history = history[:keep] + history[keep + 2 :]  # a question and its answer
        forgotten += 1
    if forgotten:
        print(
            f"[古い発言を {forgotten} 往復ぶん忘れました / forgot the {forgotten} oldest exchanges]"
        )
    return history, prompt
