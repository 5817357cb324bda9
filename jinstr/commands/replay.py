"""`jinstr replay`: a past step of a run, computed again on the devices that are here, and what was in its batch."""

from __future__ import annotations

import pathlib
import random

from jinstr import errors, record
from jinstr.data import batching
from jinstr.text import paint
from jinstr.train import attribution, debug, replay_page, startup, storage
from jinstr.train import replay as replay_lib

EXCERPT = 200  # characters of an example that are shown


def replay(
    *,
    run_dir: str,
    step: int,
    top: int,
    audit: bool,
    windows: int,
    window_steps: int,
    seed: int,
    devices: int,
    out: str,
    module: str,
) -> dict:
    """Compute step `step` of a pretrain or sft run again, or, with `audit`, hold random windows against the log.

    The state comes from the nearest checkpoint before the step and is trained forward; the run itself is only read.
    Writes OUT/replay.json, .txt and .html (or audit.json and .txt) and returns what is in the first. Examples are
    ranked by what they add to the loss (by how much it falls without them) and by the norm of their part of the
    gradient.
    Errors: ConfigError for a step that the run has not made, or a record that cannot be trusted; AuditError when the
    log says something else than the steps compute.
    """
    startup.use_compile_cache()
    folder = pathlib.Path(run_dir)
    command, kwargs = record.read(folder, module=module)
    if command not in ("pretrain", "sft"):
        raise errors.ConfigError(
            "JI-REPLAY-009",
            f"{folder} is a run of `jinstr {command}`; steps of pretrain and sft can be computed again",
        )
    kwargs = {"init": ""} | kwargs
    log = replay_lib.Log(folder)
    if not log.steps:
        raise errors.ConfigError("JI-REPLAY-002", f"{folder}/metrics.jsonl holds no step")
    if not audit and not 1 <= step <= max(log.steps):
        raise errors.ConfigError(
            "JI-REPLAY-003",
            f"STEP={step}: {folder} has made steps 1 to {max(log.steps)}; name one, or set AUDIT=True",
        )
    past = replay_lib.open_run(folder, kwargs, devices)
    try:
        if audit:
            target = pathlib.Path(out or folder / "replay" / "audit")
            chosen = chosen_windows(past, log, windows, window_steps, seed)
            return audited(past, log, chosen, target)
        way = replay_lib.Comparison(past, log)
        with debug.compiled():  # with JINSTR_DEBUG=1 it is this one step that is looked at
            state, base = replay_lib.state_at(past, step - 1)
            state = replay_lib.advance(past, state, base, step - 1, way.add)
    finally:
        past.checkpointer.close()

    batch = past.loader.read(step - 1)
    where = attribution.segments(batch)
    add = attribution.make_adder(
        past.model, kwargs["rules"], kwargs["optimizer"].z_loss, past.frozen
    )
    examples, sums = attribution.attribute(add, state["params"], batch, where)
    for facts, segment, name in zip(examples, where, past.loader.example_ids(step - 1)):
        facts["source"], facts["id"], place = name
        # Chunk of a text or turn of a conversation, and the first target in it (Loader.example_ids).
        facts["part"], facts["start"] = divmod(place, 1 << 20)
        facts["text"] = text_of(past.tokenizer, batch, segment)
    by_loss = attribution.ranked(examples, "fall")
    left_out = [[number] for number in by_loss[:top]] + [by_loss[:top]] * (top > 1)
    remaining = [
        attribution.without(add, state["params"], batch, sums, [where[i] for i in numbers])
        for numbers in left_out
    ]
    norms = attribution.norms(sums)
    state, values = past.step_function(state, replay_lib.placed(past, batch))  # donates the state
    found = {
        "run_dir": str(folder),
        "command": command,
        "step": step,
        "base": base,
        "trained_at": past.trained_at,
        "here": past.here,
        "same_place": past.is_same_place,
        "logged": step in log.steps,
        "values": replay_lib.compared(values, log.steps.get(step)),
        "way": way.facts(),
        "weight": sums.weight,
        "sum_of_shares": sums.loss,
        "digest": batching.batch_digest(batch),
        "logged_digest": log.digests.get(step, ""),
        "examples": examples,
        "by_loss": by_loss,
        "by_grad_norm": attribution.ranked(examples, "grad_norm"),
        "left_out": [
            {"examples": numbers, "loss": rest.loss, "grad_norm": rest.grad_norm}
            for numbers, rest in zip(left_out, remaining)
        ],
        "norms": norms,
        "by_layer": attribution.by_layer(norms),
    }
    target = pathlib.Path(out or folder / "replay" / str(step))
    page = replay_page.page(found, top)
    write(target, "replay", found, {"txt": "\n".join(lines_of(found, top)) + "\n", "html": page})
    return found


def write(target: pathlib.Path, name: str, found: dict, texts: dict[str, str]) -> None:
    """Print the text; it and the facts go to files, and other texts by their suffix. Errors: StorageError."""
    print(texts["txt"])
    try:
        target.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            (target / f"{name}.{suffix}").write_text(text, "utf-8")
        storage.write_json(target / f"{name}.json", found)
    except OSError as error:
        raise errors.StorageError(
            "JI-REPLAY-004", f"cannot write to {target}: {error}; set OUT to another folder"
        ) from None
    print("jinstr: " + ", ".join(f"{target / name}.{suffix}" for suffix in ("json", *texts)))


def text_of(tokenizer, batch: dict, segment: attribution.Segment) -> str:
    """The beginning of an example as text; what is trained stands in ⟦ ⟧."""
    places = segment.places[:EXCERPT]
    tokens = [int(batch["tokens"][segment.row, places[0]])]
    tokens += batch["targets"][segment.row, places].tolist()
    weights = [0.0, *batch["loss_weights"][segment.row, places].tolist()]
    text = paint.painted(tokenizer, tokens, weights, colour=False)
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "…"


def chosen_windows(
    past: replay_lib.Past, log: replay_lib.Log, count: int, length: int, seed: int
) -> list[tuple[int, int]]:
    """(base, last step) of up to `count` windows, ascending: each base at most once."""
    known = replay_lib.bases(past, max(log.steps))
    chosen = sorted(random.Random(seed).sample(known, min(count, len(known))))
    return [(base, replay_lib.window_end(log, base, length)) for base in chosen]


def audited(
    past: replay_lib.Past,
    log: replay_lib.Log,
    chosen: list[tuple[int, int]],
    target: pathlib.Path,
) -> dict:
    """Compute the windows again and write what was found. Errors: AuditError when the log differs."""
    rows = []
    for base, last in chosen:
        state, _ = replay_lib.state_at(past, base)
        seen = replay_lib.Comparison(past, log)
        replay_lib.advance(past, state, base, last, seen.add)
        rows.append({"base": base, "last": last} | seen.facts())
    problems = [problem for row in rows for problem in row["problems"]]
    found = {
        "run_dir": str(past.run_dir),
        "same_place": past.is_same_place,
        "trained_at": past.trained_at,
        "here": past.here,
        "tolerance": past.tolerance,
        "windows": rows,
        "passed": not problems,
    }
    lines = [f"audit of {past.run_dir}: {promise(past.is_same_place, past.tolerance)}"]
    for row in rows:
        lines.append(
            f"  steps {row['base'] + 1} to {row['last']}: {row['steps']} logged, {row['equal']} equal to the last bit, "
            f"largest relative difference {row['largest']:.2g}; {row['digests']} digests of batches"
        )
    lines += [f"  {problem}" for problem in problems]
    write(target, "audit", found, {"txt": "\n".join(lines) + "\n"})
    if problems:
        changed = " (its settings were changed on the way: config.1.json)"
        more = changed if (past.run_dir / "config.1.json").exists() else ""
        raise errors.AuditError(
            "JI-REPLAY-005",
            f"{past.run_dir}: {len(problems)} values are not as logged{more}, first {problems[0]}; look: "
            f"jinstr replay RUN_DIR={past.run_dir} {problems[0].partition(':')[0].replace('step ', 'STEP=')}",
        )
    return found


def promise(same_place: bool, tolerance: float) -> str:
    """What is held against the log, in words."""
    if same_place:
        return "same mesh, machine and versions as the run: every bit must be as logged"
    return f"another mesh, machine or version than the run's: equal to {tolerance:g} relative"


def lines_of(found: dict, top: int) -> list[str]:
    """The report as people read it in a terminal."""
    way, examples = found["way"], found["examples"]
    lines = [
        f"step {found['step']} of {found['run_dir']} ({found['command']}), from step {found['base']}, on "
        f"{found['here']['devices']}; the run: {found['trained_at'].get('devices', 'unknown')}",
        f"{'':<10} {'computed':>12} {'logged':>12}  relative difference",
    ]
    for name, pair in found["values"].items():
        logged = "-" if pair["logged"] is None else f"{pair['logged']:.6f}"
        differs = "this step was not logged"
        if found["logged"]:
            differs = "0, every bit" if pair["relative"] == 0 else f"{pair['relative']:.2g}"
        lines.append(f"{name:<10} {pair['computed']:>12.6f} {logged:>12}  {differs}")
    same = {"": "was not logged", found["digest"]: "is as logged"}
    lines += [
        f"the way there: {way['steps']} logged steps, {way['equal']} equal to the last bit, largest relative "
        f"difference {way['largest']:.2g}",
        f"{len(examples)} examples, {found['weight']:,.6g} trained tokens; the digest of the batch "
        f"{same.get(found['logged_digest'], 'is NOT as logged')}",
        *(f"NOT AS LOGGED: {problem}" for problem in way["problems"]),
    ]
    for title, order in (
        ("by loss (fall: of the batch's loss without it)", found["by_loss"]),
        ("by norm of its part of the gradient", found["by_grad_norm"]),
    ):
        lines += ["", f"examples {title}"]
        for rank, number in enumerate(order[:top], 1):
            e = examples[number]
            lines += [
                f"{rank:>3}. {e['source']}, {e['id']}, {e['part']}: fall {e['fall']:.4f}, "
                f"gradient {e['grad_norm']:.4f}, loss {e['loss']:.4f} a token, {e['weight']:g} tokens",
                "     " + e["text"].replace("\n", "⏎"),
            ]
    lines += ["", "if left out (by loss)"]
    for row in found["left_out"]:
        numbers = [found["by_loss"].index(number) + 1 for number in row["examples"]]
        named = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        lines.append(
            f"  without {named:<8} loss {row['loss']:.6f}  gradient norm {row['grad_norm']:.6f}"
        )
    lines += ["", "gradient norm by layer"]
    return lines + [f"  {name:<12} {value:.6f}" for name, value in found["by_layer"].items()]
