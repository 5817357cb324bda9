"""Rows about PPO and GRPO: killed in any phase of an iteration, they go on to the same bits."""

from __future__ import annotations

import json
import pathlib
import random
import signal
import time

from tests.faults import rig as rig_lib

ITERATIONS = 6
QUESTIONS = 40
REWARD = """
def short(prompt, answer, row):
    return -float(len(answer))
"""
SETTINGS = dict(
    PROMPTS_PER_ITERATION=8, MAX_NEW_TOKENS=12, PROMPT_LENGTH=64, ROLLOUT_ROWS=32, LEARNING_RATE=1e-2,
    WARMUP_STEPS=1, EVAL_EVERY=2, EVAL_PROMPTS=2, SAMPLES=2, SAVE_EVERY=2, TENSORBOARD=False, SCAN_LAYERS=False,
    REWARD="short_answers:short", REWARD_WORKERS=1, TEMPLATE="chatml", EPOCHS=2, MINIBATCHES=2,
    ITERATIONS=ITERATIONS,
)  # fmt: skip
OWN = {"ppo": {"KL_TARGET": 1.0}, "grpo": {"ANSWERS": 4, "KL_REWARD": 0.01}}
PLACES = {
    "rollout": "rollout",
    "scoring": "score",
    "update 2 of 4": "update_2",
    "saving": "save_written",
}


def words(rig: rig_lib.Rig, command: str, name: str, **settings) -> list[str]:
    place = rig.place
    if not (place / "short_answers.py").exists():
        rows = [
            {"id": str(n), "prompt": f"{n}の次の数は何ですか。", "answer": n + 1}
            for n in range(QUESTIONS)
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (place / "questions.jsonl").write_text(text, "utf-8")
        assert rig.train("untrained", "NUM_STEPS=1").status == 0
        (place / "short_answers.py").write_text(REWARD, "utf-8")
    own = dict(
        INIT=place / "untrained", PROMPTS=place / "questions.jsonl", RUN_DIR=place / name,
        CACHE_DIR=place / "cache",
    )  # fmt: skip
    if command == "grpo":
        own.pop("CACHE_DIR")
    settings = SETTINGS | OWN[command] | own | settings
    return [command, *(f"{key}={value}" for key, value in settings.items())]


def practise(rig: rig_lib.Rig, command: str, name: str, faults: str = "", **settings):
    process = rig.start(words(rig, command, name, **settings), faults=faults)
    return process.end(rig.place / name)


def facts(folder: pathlib.Path) -> dict:
    """All that must be equal: arrays of policy, moments and critic, what the next iteration starts from, every line of
    the logs but for seconds."""
    run_json = json.loads(
        (folder / "checkpoints" / str(ITERATIONS) / "run.json").read_text("utf-8")
    )
    return {
        "arrays": rig_lib.array_digests(folder, ITERATIONS),
        "practice": run_json["rl"],
        "metrics": [
            {key: value for key, value in line.items() if not is_of_time(key)}
            for line in rig_lib.lines(folder / "metrics.jsonl")
        ],
        "samples": rig_lib.lines(folder / "samples.jsonl"),
    }


def is_of_time(name: str) -> bool:
    return "time" in name or "second" in name


def undisturbed(rig: rig_lib.Rig, command: str) -> dict:
    """The facts of a run that nothing happened to."""
    folder = rig.place / f"whole-{command}"
    if not folder.exists():
        ended = practise(rig, command, folder.name)
        assert ended.status == 0, ended.text[-3000:]
    return facts(folder)


def _killed_in_phases(rig, full):
    """In CI one run that is killed in all phases in turn; in full each phase of each command by itself."""
    kept, told = [], []
    for command in ("ppo", "grpo") if full else ("ppo",):
        wanted = undisturbed(rig, command)
        kills = [(phase, f"{place}@4=kill") for phase, place in PLACES.items()]
        for parts in [[kill] for kill in kills] if full else [kills]:
            name = rig.fresh(f"killed-{command}")
            ends = [practise(rig, command, name, faults=fault).status for _, fault in parts]
            again = practise(rig, command, name)
            exact = again.status == 0 and facts(again.folder) == wanted
            kept.append(set(ends) == {-signal.SIGKILL} and exact)
            phases = ", ".join(phase for phase, _ in parts)
            told.append(f"{command} in {phases}: {'exact' if kept[-1] else f'NOT exact, {ends}'}")
    # Negative control: another seed is another run, and is seen as one.
    other = practise(rig, "ppo", rig.fresh("other"), SEED=1)
    seen = other.status == 0 and facts(other.folder) != undisturbed(rig, "ppo")
    return f"{'; '.join(told)}; another seed is seen: {seen}", all(kept) and seen


def _random_kills(rig, full):
    count, kills, kept = 20 if full else 1, 0, 0
    for seed in range(count):
        draw = random.Random(seed)
        command = draw.choice(("ppo", "grpo"))
        wanted = undisturbed(rig, command)
        name = rig.fresh("random")
        process = rig.start(words(rig, command, name), faults="update_1@*=slow,rollout@*=slow")
        process.until("iteration 1/")
        time.sleep(draw.uniform(0, 3.0))
        process.kill()
        kills += process.end(rig.place / name).status == -signal.SIGKILL
        again = practise(rig, command, name)
        kept += again.status == 0 and facts(again.folder) == wanted
    text = f"{kept}/{count} runs exact, {kills} of them killed before their end (seeds 0 to {count - 1})"
    return text, kept == count and kills > count // 2


ROWS = [
    rig_lib.row(
        "60", "kill -9 of ppo and grpo in rollout, scoring, update, save", "bit-identical, nothing logged twice",
        _killed_in_phases, True,
    ),
    rig_lib.row("61", "20 random kill -9 of ppo and grpo", "bit-identical", _random_kills),
]  # fmt: skip
