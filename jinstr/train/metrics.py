"""Where numbers go: metrics.jsonl and samples.jsonl in the run directory, TensorBoard, and wandb if asked."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from jinstr.data import batching
from jinstr.parallel import processes, together


def read_lines(path: pathlib.Path) -> list[dict]:
    """The whole lines of a JSONL file; a line cut off by a kill, perhaps inside a character, is left out."""
    lines = []
    if path.exists():
        # Not splitlines(): text may hold U+2028 or U+0085, which JSON leaves as they are.
        for line in path.read_bytes().split(b"\n"):
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
    return lines


def cut_back(path: pathlib.Path, step: int) -> None:
    """Keep the whole lines up to `step`; what came after goes to <name>.after_<step> beside it."""
    lines = read_lines(path)
    later = [line for line in lines if line["step"] > step]
    # The end of a cut line must go too: the next line would be written behind it.
    if not later and (not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")):
        return
    if later:
        with path.with_name(f"{path.name}.after_{step}").open("a", encoding="utf-8") as aside:
            aside.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in later)
    kept = "".join(
        json.dumps(line, ensure_ascii=False) + "\n" for line in lines if line["step"] <= step
    )
    replacement = path.with_name(path.name + ".tmp")
    replacement.write_text(kept, encoding="utf-8")
    replacement.replace(path)


def examples_logged(
    loader, start_step: int, run_dir, log: bool, places: Sequence[int] | None = None
) -> Iterator[tuple[int, dict]]:
    """The loader's batches, of several processes this one's rows; with `log`, RUN_DIR/examples.jsonl tells what was in
    each, as all processes together read it."""
    if not log:
        yield from loader.iterate(start_step, places)
        return
    path = _own(pathlib.Path(run_dir) / "examples.jsonl")
    cut_back(path, start_step)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        for step, batch in loader.iterate(start_step, places):
            whole = together.joined(batch, places, loader.config.batch_rows)
            line = {
                "step": step + 1,
                "digest": batching.batch_digest(whole),
                "examples": loader.example_ids(step),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            yield step, batch


def _own(path: pathlib.Path) -> pathlib.Path:
    """The file, for the first of several processes, which speaks for all; the others write into nothing."""
    return pathlib.Path(os.devnull) if processes.index() else path


class MetricsWriter:
    """Appends metrics and samples; on a resume it first cuts the files back to the restored step."""

    def __init__(self, run_dir, *, tensorboard: bool, wandb: str, start_step: int):
        run_dir = pathlib.Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        metrics, samples = (_own(run_dir / name) for name in ("metrics.jsonl", "samples.jsonl"))
        cut_back(metrics, start_step)
        cut_back(samples, start_step)
        self._metrics = metrics.open("a", encoding="utf-8", buffering=1)
        self._samples = samples.open("a", encoding="utf-8", buffering=1)
        self._board = self._wandb = None
        if processes.index():  # the first of several processes speaks for all
            return
        if tensorboard:
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(
                str(run_dir / "tensorboard"), purge_step=start_step
            )
        if wandb:
            import wandb as wandb_lib

            self._wandb = wandb_lib.init(project=wandb, dir=str(run_dir), resume="allow")

    def write(self, step: int, values: dict[str, float]) -> None:
        """One line {"step", name: value, …} after `step` updates."""
        self._metrics.write(json.dumps({"step": step} | values, ensure_ascii=False) + "\n")
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def write_sample(self, step: int, prompt: str, answer: str, ended: bool, set_name: str) -> None:
        line = {"step": step, "set": set_name, "prompt": prompt, "answer": answer, "ended": ended}
        self._samples.write(json.dumps(line, ensure_ascii=False) + "\n")

    def write_scored_sample(self, step: int, sample: dict) -> None:
        """An answer with what a reward made of it: prompt, answer, ended, score, tokens."""
        line = {"step": step, "set": "prompts"} | sample
        self._samples.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


def write_samples(
    writer: MetricsWriter, step: int, name: str, tokenizer, prompts: Sequence, answers: Sequence
) -> float:
    """Put answers to held-out prompts into samples.jsonl; the share of them that ended by themselves."""
    ended = [answer.finish != "length" for answer in answers]
    for prompt, answer, has_ended in zip(prompts, answers, ended):
        writer.write_sample(step, tokenizer.decode(prompt), answer.text, has_ended, name)
    return sum(ended) / len(ended)
