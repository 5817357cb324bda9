"""The same exported model by jinstr and by transformers: choices and written answers of two benchmarks.

    jinstr convert runs/sft OUT=export/mine
    peers/bin/python -m tests.evaluate.engine_parity export/mine valid-v1.3.json jsquad-valid-v1.3.json

transformers gets the messages and does the rest itself: its tokenizer, the chat template of the export, its forward and
`generate`, one question at a time. (pip install torch transformers)
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from typing import NamedTuple

from jinstr import run
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.evaluate import results, tasks

COUNT, LONGEST = 100, 25


class Parity(NamedTuple):
    """Of `count` questions: how many have the same choice, the same written answer, and the nearest two choices."""

    count: int
    choices: int
    written: int
    closest: float  # smallest distance between the best two candidates of a question, nats


def own(folder: str, choices: str, written: str, count: int, out: pathlib.Path) -> list[list[dict]]:
    """Predictions of jinstr, by the first template of each task."""
    asked = {"jcommonsenseqa": choices, "jsquad": written}
    found = []
    for name, path in asked.items():
        (task,) = tasks.parse(f"{name}={path}", "")
        template = task.benchmark.templates[0].name
        words = [f"MODELS=hf:{folder}", f"TASKS={name}={path}", f"TASK_TEMPLATES={template}"]
        words += [f"LIMIT={count}", f"OUTPUT={out / name}.jsonl", f"MAX_NEW_TOKENS={LONGEST}"]
        assert run.main(["evaluate", *words, "BATCH_ROWS=16"]) == 0
        (line,) = map(json.loads, (out / f"{name}.jsonl").read_text("utf-8").splitlines())
        assert line["format"] == "chat"
        found.append(results.read_predictions(out / f"{name}.jsonl", line["key"]))
    return found


class Theirs:
    """transformers."""

    def __init__(self, folder: str):
        import torch
        import transformers

        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()

    def ids(self, messages, **settings) -> list[int]:
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def likeliest(self, asked: benchmark_lib.Asked) -> tuple[int, float]:
        """(number of the likeliest answer, by how much)."""
        prompt = self.ids(asked.messages, add_generation_prompt=True)
        logps = []
        for text in asked.candidates:
            whole = self.ids([*asked.messages, {"role": "assistant", "content": text}])
            assert whole[: len(prompt)] == prompt
            # A turn ends by its end token; line breaks that a template puts behind it are not the answer's.
            end = max(n for n, token in enumerate(whole) if token in self.ends()) + 1
            with self.torch.no_grad():
                logits = self.model(self.torch.tensor([whole])).logits[0].double()
            logp = logits.log_softmax(-1)
            places = range(len(prompt), end)
            logps.append(sum(float(logp[n - 1, whole[n]]) for n in places))
        first, second = sorted(logps)[:-3:-1]
        return logps.index(first), first - second

    def ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        marks = self.tokenizer.convert_tokens_to_ids(["<|im_end|>"])
        return {*(ends if isinstance(ends, list) else [ends]), *marks}

    def written(self, asked: benchmark_lib.Asked) -> str:
        prompt = self.torch.tensor([self.ids(asked.messages, add_generation_prompt=True)])
        mask = self.torch.ones_like(prompt)
        found = self.model.generate(
            prompt,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=LONGEST,
            eos_token_id=sorted(self.ends()),
        )
        ids = [token for token in found[0, prompt.shape[1] :].tolist() if token not in self.ends()]
        # Bytes that are no text are left out, as jinstr does; transformers puts marks in their place.
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        return b"".join(map(_bytes, pieces)).decode("utf-8", "ignore")


def _bytes(piece: str) -> bytes:
    if piece.startswith("<0x") and len(piece) == 6:
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode("utf-8")


def compare(folder: str, choices: str, written: str, count: int = COUNT, template: int = 0):
    """template: the one that transformers gets; another than the first is a negative control."""
    with tempfile.TemporaryDirectory() as out:
        chosen, wrote = own(folder, choices, written, count, pathlib.Path(out))
    theirs = Theirs(folder)
    alike, closest = [0, 0], float("inf")
    for place, (name, path, rows) in enumerate(
        (("jcommonsenseqa", choices, chosen), ("jsquad", written, wrote))
    ):
        (task,) = tasks.parse(f"{name}={path}", "")
        for example, row in zip(task.examples, rows, strict=False):
            asked = benchmark_lib.ask(task.benchmark.templates[template], example, ())
            if name == "jcommonsenseqa":
                number, distance = theirs.likeliest(asked)
                alike[place] += number == row["chosen"]
                closest = min(closest, distance)
            else:
                alike[place] += theirs.written(asked).strip() == row["text"].strip()
    return Parity(count, *alike, closest)


if __name__ == "__main__":
    print(compare(*sys.argv[1:4]))
