"""The command line: every command resolves, nothing wrong stays silent."""

import json
import pathlib

import pytest

from jinstr import cli, run

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# What each command must be told.
NEEDED = {
    "tokenizer": ["INPUT=a.jsonl", "OUT=t"],
    "prepare": ["DATA=a.jsonl", "TOKENIZER=t.model"],
    "inspect": ["DATA=a.jsonl", "TOKENIZER=t.model"],
    "pretrain": [
        "gin_configs/model/tiny.gin",
        "DATA=a.jsonl",
        "TOKENIZER=t.model",
        "RUN_DIR=r",
        "EPOCHS=1",
    ],
    "sft": ["INIT=b", "DATA=a.jsonl", "RUN_DIR=r", "EPOCHS=1"],
    "generate": ["MODELS=b", "INPUT=p.jsonl", "OUTPUT=o.jsonl"],
    "chat": ["RUN_DIR=r"],
    "quickstart": [],
    "bench": ["gin_configs/model/bench_256.gin"],
    "config": [],
}


def resolved(capsys, *words):
    assert run.main([*words, "--dry_run"]) == 0
    return json.loads(capsys.readouterr().out)["settings"]


def refused(capsys, *words):
    assert run.main([*words, "--dry_run"]) == 78
    return capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_resolves(command, capsys):
    resolved(capsys, command, *NEEDED[command])
    for word in NEEDED[command]:
        if "=" in word and command not in ("pretrain", "sft"):
            rest = [other for other in NEEDED[command] if other != word]
            assert word.partition("=")[0] in refused(capsys, command, *rest)


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    assert run.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert cli.COMMANDS[command].japanese in text


def test_settings_reach_their_place(capsys):
    words = ["pretrain", *NEEDED["pretrain"], "LEARNING_RATE=5e-4", "--gin.SEED=7", "MESH_FSDP=2"]
    found = resolved(capsys, *words, "optimizer.OptimizerConfig.decay_share=0.5")
    assert found["optimizer"]["learning_rate"] == 5e-4 and found["seed"] == 7
    assert found["mesh"]["fsdp"] == 2 and found["optimizer"]["decay_share"] == 0.5
    assert found["model"]["hidden_size"] == 128 and found["model"]["vocab_size"] == 0


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["NUM_STEP=5"], "NUM_STEPS"),
        (["LEARNING_RATE=fast"], "float"),
        (["EPOCHS=two"], "float"),
        (["optimizer.OptimizerConfig.learning_rte=1"], "learning_rate"),
        (["config.DecoderConfig.norm=layr"], "allowed"),
        (["gin_configs/model/tinny.gin"], "tiny"),
        (["--sed=1"], "SEED"),
    ],
)
def test_what_is_wrong_is_named(words, wanted, capsys):
    text = refused(capsys, "pretrain", *NEEDED["pretrain"], *words)
    assert wanted in text and text.startswith("jinstr: JI-") and text.count("\n") == 1


def test_unknown_command(capsys):
    assert run.main(["pretrian"]) == 78
    assert "did you mean pretrain?" in capsys.readouterr().err


def test_gin_files_import_nothing_foreign(tmp_path, capsys):
    path = tmp_path / "evil.gin"
    path.write_text("import os\nos.system.command = 'true'\n")
    assert "may not import os" in refused(capsys, "pretrain", *NEEDED["pretrain"], str(path))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "gin_configs" / "recipe").glob("*.gin")))
def test_recipes(path, capsys):
    assert path.read_text("utf-8").count("\n") <= 40
    command = "sft" if "sft" in path.name else "pretrain"
    needed = [w for w in NEEDED[command] if "=" in w and not w.startswith("EPOCHS")]
    assert resolved(capsys, command, str(path), *needed)["loop_config"]["num_steps"] > 0


def test_overview_lists_all_commands(capsys):
    assert run.main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_config_search(capsys):
    assert run.main(["config", "SEARCH=lr"]) == 0
    assert "learning_rate" in capsys.readouterr().out
