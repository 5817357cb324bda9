"""`jinstr generate`: answers to a file of prompts, from one or several models."""

from __future__ import annotations

import dataclasses
import pathlib

from tqdm import tqdm

from jinstr import errors
from jinstr.decode import requests
from jinstr.decode import sampler as sampler_lib
from jinstr.decode import text as text_lib
from jinstr.train import base as base_lib
from jinstr.train import serving


def generate(
    *,
    models: str,
    input: str,
    output: str,
    answers: int,
    temperatures: str | float | tuple[float, ...],
    sampling: sampler_lib.SamplingConfig,
    batch_rows: int,
    step: int | None,
    weights: str,
    template: str,
) -> dict:
    """Write `answers` answers for each prompt, model and temperature; see `decode.requests` for the files. Of a prompt
    of several turns, each is asked when the model has answered the one before.

    models: "RUN_DIR" or "name=RUN_DIR,name=RUN_DIR". temperatures: "0.7,1.0", 0.7 or (0.7, 1.0). Interrupted, the same
    command goes on where it stopped: an answer depends on its prompt, model, temperature, number and settings only,
    never on the batch it was written in. One model is in memory at a time.
    """
    runs = parse_models(models)
    degrees = parse_temperatures(temperatures)
    prompts = requests.read_prompts(input)
    by_id = {prompt["id"]: prompt for prompt in prompts}
    log = requests.AnswerLog(f"{output}.answers.jsonl")
    kept: dict[str, list[dict]] = {prompt["id"]: [] for prompt in prompts}
    made = 0
    try:
        for name, run_dir in runs:
            run = serving.load_run(run_dir, step, weights=weights, template=template)
            model = identity(run_dir, run.step, weights, template)
            for degree in degrees:
                setting = dataclasses.replace(sampling, temperature=degree)
                sampler = text_lib.TextSampler(*run[:4], setting)
                # Greedy answers are all alike: one is enough.
                numbers = range(answers if degree > 0 else 1)
                said = {
                    (prompt_id, n): [] for prompt_id in by_id for n in numbers
                }  # answers to its turns
                for turn in range(max(map(requests.turns_of, prompts), default=0)):
                    wanted = {}  # (id, number of the answer) → (prompt up to this turn, key)
                    for place, before in said.items():
                        if turn < requests.turns_of(by_id[place[0]]):
                            asked = requests.at_turn(by_id[place[0]], [a["text"] for a in before])
                            facts = [model, dataclasses.asdict(setting), asked, place[1]]
                            wanted[place] = asked, requests.digest(facts)
                    todo = [
                        (asked, number, key)
                        for (_, number), (asked, key) in wanted.items()
                        if key not in log.answers
                    ]
                    bar = tqdm(
                        total=len(wanted),
                        initial=len(wanted) - len(todo),
                        desc=f"{name} T={degree:g}" + (f" turn {turn + 1}" if turn else ""),
                        unit="answer",
                        disable=None,
                    )
                    for (prompt, _, key), answer in answer_each(sampler, todo, degree, batch_rows):
                        head = {"key": key, "id": prompt["id"], "model": name}
                        log.add(head | {"temperature": degree, "step": run.step} | logged(answer))
                        made += 1
                        bar.update()
                    bar.close()
                    for place, (_, key) in wanted.items():
                        said[place].append(log.answers[key])
                for (prompt_id, _), given in said.items():
                    # The name is today's: the log may hold the answer under another one.
                    kept[prompt_id].append(requests.joined(given) | {"model": name})
    finally:
        log.close()
    rows = list(requests.sheet(prompts, kept))
    requests.write_jsonl(output, rows)
    total = sum(map(len, kept.values()))
    distinct = sum(len(row["responses"]) for row in rows)
    print(f"{output}: {len(prompts)} prompts, {distinct} distinct of {total} answers, {made} new")
    return {"prompts": len(prompts), "answers": total, "distinct": distinct, "new": made}


def identity(model: str, step: int, weights: str, template: str) -> list:
    """What tells a model from one trained anew in the same place: a digest of its weights, its template's content."""
    name = template or base_lib.template_of(model)
    written = pathlib.Path(name).read_text("utf-8") if name.endswith(".jinja") else name
    place = model if model.startswith("hf:") or "@" in model else f"{model}@{step}"
    return [model, step, weights, base_lib.digest_of(place), written]


def logged(answer: text_lib.Answer) -> dict:
    """An answer as the log keeps it."""
    return {
        "text": answer.text,
        "finish": answer.finish,
        "tokens": len(answer.ids),
        "logp": round(answer.logp, 4),
    }


def answer_each(sampler: text_lib.TextSampler, todo: list, degree: float, batch_rows: int):
    """((prompt, number, key), Answer) of each wanted item as batches finish."""
    ids = []
    for prompt, _, _ in todo:
        turns = zip(prompt["roles"], prompt["contents"])
        ids.append(sampler.prompt_ids([{"role": r, "content": c} for r, c in turns]))
        if len(ids[-1]) > sampler.longest_prompt:
            raise errors.DataError(
                "JI-GENERATE-005",
                f"prompt {prompt['id']!r} has {len(ids[-1])} tokens; with max_new_tokens="
                f"{sampler.sampling.max_new_tokens} the model takes {sampler.longest_prompt}",
            )
    rows = [text_lib.row_id(prompt["id"], degree, number) for prompt, number, _ in todo]
    for index, answer in sampler.answer_all(ids, rows, batch_rows):
        yield todo[index], answer


def parse_models(models: str) -> list[tuple[str, str]]:
    """ "name=RUN_DIR,…" or "RUN_DIR" → [(name, RUN_DIR)]; a directory without a name is its own name."""
    pairs = []
    for part in filter(None, (part.strip() for part in models.split(","))):
        name, equals, run_dir = part.partition("=")
        pairs.append((name, run_dir if equals else name))
    names = [name for name, _ in pairs]
    if not pairs or len(set(names)) < len(names):
        raise errors.ConfigError(
            "JI-GENERATE-006", f"MODELS={models!r}: give name=RUN_DIR,… with distinct names"
        )
    return pairs


def parse_temperatures(temperatures: str | float | tuple[float, ...]) -> list[float]:
    """ "0.7,1.0" or (0.7, 1.0) → [0.7, 1.0]; 0.7 → [0.7]. A command line reads numbers as numbers."""
    many = isinstance(temperatures, tuple)
    try:
        return [float(part) for part in (temperatures if many else str(temperatures).split(","))]
    except ValueError:
        message = f"TEMPERATURES={temperatures!r}: numbers, comma separated"
        raise errors.ConfigError("JI-GENERATE-007", message) from None
