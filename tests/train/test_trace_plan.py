"""PROFILE windows and the plan of --dry_run."""

import pytest

from jinstr import errors, run
from jinstr.models import config as config_lib
from jinstr.train import plan, trace


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: found.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: found.append("stop"))
    return found


@pytest.mark.parametrize(
    "window, steps, wanted",
    [
        ("2:3", range(6), {2: "start", 4: "stop"}),
        ("2:3", range(3, 6), {3: "start", 4: "stop"}),  # resumed inside the window
        ("2:3", range(5, 8), {}),  # resumed behind it
        ("", range(6), {}),
    ],
)
def test_traces_the_steps_asked_for(window, steps, wanted, calls, tmp_path):
    one, seen = trace.Trace(window, tmp_path), {}
    for step in steps:
        before = len(calls)
        one.before(step)
        seen |= {step: calls[-1]} if len(calls) > before else {}
    assert seen == wanted


def test_a_window_at_the_end_is_closed(calls, tmp_path):
    one = trace.Trace("2:9", tmp_path)
    one.before(2)
    one.close()
    one.close()
    assert calls == ["start", "stop"]


@pytest.mark.parametrize("window", ["10", "5:3", "a:b"])
def test_other_windows_are_refused(window, tmp_path):
    with pytest.raises(errors.ConfigError, match="is not first:last"):
        trace.Trace(window, tmp_path)


def test_dry_run_tells_size_memory_and_data(world, tokenizer_path, capsys, tmp_path):
    words = ["pretrain", "gin_configs/model/tiny.gin", f"DATA={world}/corpus.jsonl*2"]
    words += [f"TOKENIZER={tokenizer_path}", f"RUN_DIR={tmp_path}/run", "NUM_STEPS=10"]
    assert run.main([*words, "--dry_run"]) == 0
    text = capsys.readouterr().err
    assert "parameters: " in text and "optimizer" in text
    assert "corpus: 1 files, 0.1 MB, rate 2" in text
    assert "10 steps, 81,920 places" in text
    assert not (tmp_path / "run").exists()
    # What is twice as wide weighs more: the figures come from the model that is asked for.
    sizes = []
    for width in (64, 128):
        run.main([*words, f"config.DecoderConfig.hidden_size={width}", "--dry_run"])
        line = [r for r in capsys.readouterr().err.splitlines() if r.startswith("parameters")]
        sizes.append(int(line[0].partition(": ")[2].replace(",", "")))
    assert sizes[1] > 1.8 * sizes[0]


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["grpo"], ()),
        (["grpo", "KL_LOSS=0.1"], ("reference",)),
        (["ppo"], ("reference",)),
        (["ppo", "LORA_RANK=2", "CRITIC=policy"], ("base, not trained", "the critic")),
    ],
    ids=str,
)
def test_the_plan_of_practice_counts_what_is_only_read(words, wanted, capsys, monkeypatch):
    model = config_lib.DecoderConfig(
        vocab_size=2048, hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, mlp_size=64
    )  # fmt: skip
    # As if INIT were there: the rest of the plan is real.
    monkeypatch.setattr(
        plan, "_model", lambda settings: config_lib.executed(model, settings["execution"])
    )
    words = [*words, "--dry_run", "INIT=x", "PROMPTS=q.jsonl", "REWARD=number", "ITERATIONS=5"]
    assert run.main([*words, "RUN_DIR=r", "MAX_NEW_TOKENS=77", "EPOCHS=3", "MINIBATCHES=2"]) == 0
    told = capsys.readouterr().err
    assert "length: 5 iterations of" in told and "up to 77 tokens, 6 updates each" in told
    assert "questions of q.jsonl" in told
    for name in ("reference", "base, not trained", "the critic"):
        assert (f"    {name}" in told or f"it {name}" in told) == (name in wanted)
