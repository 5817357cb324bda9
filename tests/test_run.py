"""The command line: every command resolves, nothing wrong stays silent."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import pytest

from jinstr import cli, run, settings
from jinstr.commands import generate
from jinstr.models import config as config_lib
from jinstr.models import lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import state as state_lib

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
    "reward": ["INIT=b", "DATA=a.jsonl", "RUN_DIR=r", "EPOCHS=1"],
    "dpo": ["INIT=b", "DATA=a.jsonl", "RUN_DIR=r", "EPOCHS=1"],
    "ppo": ["INIT=b", "PROMPTS=p.jsonl", "REWARD=number", "RUN_DIR=r", "ITERATIONS=1"],
    "grpo": ["INIT=b", "PROMPTS=p.jsonl", "REWARD=number", "RUN_DIR=r", "ITERATIONS=1"],
    "score": ["REWARD=number", "INPUT=a.jsonl", "OUTPUT=o.jsonl"],
    "judge": ["MODEL=m", "OUT=o"],
    "evaluate": ["MODELS=b", "TASKS=jnli=a.json", "OUTPUT=o.jsonl"],
    "generate": ["MODELS=b", "INPUT=p.jsonl", "OUTPUT=o.jsonl"],
    "chat": ["RUN_DIR=r"],
    "convert": ["MODEL=r", "OUT=o"],
    "import-config": ["TRAIN=t.yaml"],
    "compare": ["ACTION=read", "STUDY=s"],
    "quickstart": [],
    "resume": ["RUN_DIR=r"],
    "replay": ["RUN_DIR=r"],
    "doctor": [],
    "plan": ["TOPOLOGY=cpu:8"],
    "bench": ["gin_configs/model/bench_256.gin"],
    "config": [],
}


def resolved(capsys, *words):
    assert run.main([*words, "--dry_run"]) == 0
    # Training prints its plan behind the settings.
    found, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    return found["settings"]


def refused(capsys, *words):
    assert run.main([*words, "--dry_run"]) == 78
    return capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_resolves(command, capsys):
    resolved(capsys, command, *NEEDED[command])
    for word in NEEDED[command]:
        if "=" in word and command not in ("pretrain", "sft", "reward", "dpo"):
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


@pytest.mark.parametrize("text, wanted", [("0.7", 0.7), ("0.7,1.0", [0.7, 1.0]), ("1", 1)])
def test_temperatures_from_the_command_line(text, wanted, capsys):
    found = resolved(capsys, "generate", *NEEDED["generate"], f"TEMPERATURES={text}")
    assert found["temperatures"] == wanted
    degrees = wanted if isinstance(wanted, list) else [wanted]
    assert generate.parse_temperatures(settings.literal(text)) == degrees


def test_the_way_out_of_a_wrong_type_is_one(capsys):
    words = ["generate", *NEEDED["generate"]]
    hint = refused(capsys, *words, "TEMPLATE=1,2")
    (word,) = re.findall(r"""write (TEMPLATE=".*")""", hint)
    assert resolved(capsys, *words, *shlex.split(word))["template"] == "1,2"
    # Negative control: a list of words is still no temperature.
    assert "tuple[float, ...]" in refused(capsys, *words, "TEMPERATURES=('warm',)")


def commands_of(text):
    """The words of every `jinstr …` line, and of what the launchers hand on to it; continued lines are one."""
    for line in re.sub(r"\\\n(# *)?", "", text).split("\n"):
        start = re.match(r"(# *)?(jinstr|bash launch/local_[cg]pu\.sh) ", line)
        if start and "--help" not in line:
            yield shlex.split(line[start.end() :])


CONFIGS = sorted((REPOSITORY / "gin_configs").glob("r*/*.gin"))
RECIPES = [path for path in CONFIGS if path.parent.name == "recipe"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_headers_of_gin_files_can_be_run(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # whatever runs/ of the repository holds, nothing is read from it
    header = path.read_text("utf-8").partition("from __gin__")[0]
    found = list(commands_of(header))
    assert found and {path.parent.name for path in CONFIGS} == {"run", "recipe"}
    for words in found:
        resolved(capsys, *words)
    # Negative control: a setting that does not exist.
    refused(capsys, *found[0], "NO_SUCH_SETTING=1")


@pytest.mark.parametrize("name", ["README.md", "README.ja.md"])
def test_commands_of_the_readme_can_be_run(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = (REPOSITORY / name).read_text("utf-8").split("```bash\n")[1:]
    found = [words for block in blocks for words in commands_of(block.partition("```")[0])]
    assert len(found) >= 10
    for words in found:
        resolved(capsys, *words)
    # Negative control: a setting that does not exist.
    refused(capsys, *found[0], "NO_SUCH_SETTING=1")


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


HEAD = """from __gin__ import dynamic_registration
from jinstr.data import readers
from jinstr.train import optimizer
"""


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("optimzer.OptimizerConfig.beta1 = 1\n", "4: optimzer is not imported above it"),
        ("mesh.AxisRules.embed = None\n", "4: mesh is not imported above it in this file; import"),
        ("optimizer.OptimizerConfig.beta3 = 1\n", "4: optimizer.OptimizerConfig has no setting"),
        ("optimizer.OptimizerConfig.learning_rate = 1\n", "write LEARNING_RATE = 1 instead"),
        ("optimizer.OptimizerConfig.beta1 = %gin.REQUIRED\n", "4: pretrain needs optimizer."),
        ("SAMPLE_PROMPTS = ['a']\n", "4: SAMPLE_PROMPTS = ['a'] (list), but"),
        ("SAMPLE_PROMPTS = ('a', 1)\n", "4: SAMPLE_PROMPTS = ('a', 1) (tuple), but"),
        ("SEED = None\n", "4: SEED = None (NoneType), but pretrain.seed is int"),
        ("SEED = True\n", "4: SEED = True (bool), but pretrain.seed is int"),
        ("SEED = (1,\n", "is not a gin file"),
        ("SEED = @readers.os.getcwd()\n", "4: @readers.os.getcwd() belongs to"),
        ("SEED = [{'a': (@readers.os.getcwd(),)}]\n", "4: @readers.os.getcwd() belongs to"),
        ("DATA = @readers.named_files()\n", "only dataclasses can be built"),
    ],
)
def test_slips_in_a_gin_file(text, wanted, tmp_path, capsys):
    path = tmp_path / "slip.gin"
    path.write_text(HEAD + text)
    words = ["pretrain", *(w for w in NEEDED["pretrain"] if not w.startswith("DATA")), str(path)]
    assert wanted in refused(capsys, *words, *([] if "DATA" in text else ["DATA=a"]))
    # Negative control: the same file without the slip.
    path.write_text(HEAD)
    resolved(capsys, *words, "DATA=a")


def overridden(capsys, *words):
    assert run.main(["pretrain", *NEEDED["pretrain"], *map(str, words), "--dry_run"]) == 0
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if "overridden" in line]


def test_what_a_later_file_overrides_is_listed(tmp_path, capsys):
    a, b, both = (tmp_path / name for name in ("a.gin", "b.gin", "both.gin"))
    a.write_text("SEED = 1\nKEEP = 4\n")
    b.write_text("SEED = 2\nKEEP = 4\n")
    both.write_text(f"include '{a}'\ninclude '{b}'\n")
    line = f"jinstr: {a}:1: SEED = 1 is overridden by {b}:1: SEED = 2"
    assert overridden(capsys, a, b) == overridden(capsys, both) == [line]
    # Negative control: to override what one includes, or by the command line, is what both are for.
    both.write_text(f"include '{a}'\nSEED = 3\n")
    assert overridden(capsys, both) == overridden(capsys, a, b, "SEED=5") == []
    (line,) = overridden(capsys, "SEED=5", "SEED=6", "SEED=6")
    assert line.endswith("command line: SEED = 5 is overridden by SEED = 6")


def test_gin_files_import_nothing_foreign(tmp_path, capsys):
    path = tmp_path / "evil.gin"
    path.write_text("import os\nos.system.command = 'true'\n")
    assert "may not import os" in refused(capsys, "pretrain", *NEEDED["pretrain"], str(path))


def recipe(path, capsys):
    """The settings that the last command of a recipe's header resolves to."""
    *_, words = commands_of(path.read_text("utf-8").partition("from __gin__")[0])
    return resolved(capsys, *words)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes(path, capsys):
    assert path.read_text("utf-8").count("\n") <= 40
    found = recipe(path, capsys)
    if "questions" in found:
        assert found["config"]["iterations"] > 0
    else:
        loop = found["loop_config"]
        assert (loop["num_steps"] > 0) != (loop["epochs"] > 0)


def sums_of(text):
    """(what is to be computed, result) of every sum in comments: "#  GB: 2 × 6.74 = 13.5"."""
    for sum_, result in re.findall(r"(?:# *|: )([\d(][\d.e+\-*/×() ]*[\d)]) = ([\d.]+)", text):
        yield sum_.replace("×", "*"), float(result.rstrip("."))


NOT_RUN = [path for path in RECIPES if "NOT RUN" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", NOT_RUN, ids=lambda path: path.stem)
def test_the_sums_of_a_recipe_that_was_not_run_are_right(path, capsys):
    header = path.read_text("utf-8").partition("from __gin__")[0]
    found = list(sums_of(header))
    assert len(found) >= 6
    for sum_, result in found:
        assert eval(sum_, {"__builtins__": {}}) == pytest.approx(result, rel=0.011), sum_
    # Negative control: a number that is wrong by a twentieth.
    assert eval(found[0][0], {"__builtins__": {}}) != pytest.approx(found[0][1] * 1.05, rel=0.011)
    settings_of = recipe(path, capsys)
    assert str(settings_of.get("data", settings_of.get("text"))["seq_len"]) in header
    for word in ("Hours", "Expected", "GB"):
        assert word in header


def test_steps_and_batches_are_those_of_the_sums(capsys):
    by_name = {path.stem: path for path in NOT_RUN}
    assert len(by_name) == 6
    for name in by_name.keys() - {"ppo_instructgpt"}:
        header = by_name[name].read_text("utf-8").partition("from __gin__")[0]
        found = recipe(by_name[name], capsys)
        assert str(found["data"]["batch_tokens"]) in header
        passes = {1.0: "one pass", 2.0: "two passes", 5.0: "five passes"}
        steps = found["loop_config"]["num_steps"]
        assert (str(steps) if steps else passes[found["loop_config"]["epochs"]]) in header
        rows = found["data"]["batch_tokens"] // found["data"]["seq_len"]
        assert rows % found["loop_config"]["microbatches"] == 0


def test_practice_is_as_long_as_its_sums_say(capsys):
    (path,) = [path for path in NOT_RUN if path.stem == "ppo_instructgpt"]
    found = recipe(path, capsys)
    sums = dict(sums_of(path.read_text("utf-8")))
    config, text = found["config"], found["text"]
    episodes = config["iterations"] * config["prompts"] * config["answers"]
    assert sums["500 * 512"] == episodes == 256_000
    updates = config["iterations"] * config["epochs"] * config["minibatches"]
    assert sums["500 * 8"] == updates == 4000
    assert sums["8 * 64 * 2048"] == text["batch_tokens"]
    # What the paper gives (section 1 of its appendix C): 64 answers an update, one pass, 8 texts for each of them.
    assert config["prompts"] // config["minibatches"] == 64 and config["epochs"] == 1
    assert text["batch_tokens"] // text["seq_len"] == 8 * 64
    published = {"clip_low": 0.2, "clip_high": 0.2}
    assert published.items() <= found["loss"].items()
    assert found["algorithm"]["text_coefficient"] == 27.8 and found["algorithm"]["discount"] == 1
    assert found["optimizer"]["ema_decay"] == 0.992 and found["config"]["kl_reward"] == 0.02
    assert found["critic_optimizer"]["learning_rate"] == 9e-6
    assert (found["optimizer"]["beta1"], found["optimizer"]["beta2"]) == (0.9, 0.95)
    assert found["optimizer"]["warmup_steps"] == 10 * config["minibatches"]
    assert found["rollout"]["temperature"] == 1.0 and found["questions"]["longest"] == 1024


def test_the_reward_model_is_trained_as_published(capsys):
    (path,) = [path for path in NOT_RUN if path.stem == "reward_instructgpt"]
    found = recipe(path, capsys)
    assert found["optimizer"]["learning_rate"] == 9e-6 and found["loop_config"]["epochs"] == 1
    assert found["optimizer"]["schedule"] == "cosine" and found["optimizer"]["final_share"] == 0.1
    assert found["data"]["batch_tokens"] == 64 * found["data"]["seq_len"]
    assert found["demonstrations"]


def test_what_adapters_on_7b_hold_is_what_their_recipe_says(capsys):
    (path,) = [path for path in NOT_RUN if path.stem == "lora_7b_one_gpu"]
    found, header = recipe(path, capsys), path.read_text("utf-8").partition("from __gin__")[0]
    given = found["execution"]["lora"]
    model = config_lib.DecoderConfig(
        vocab_size=32000, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32,
        head_dim=128, mlp_size=11008, tie_embeddings=False, compute_dtype="bfloat16",
        lora=config_lib.LoraConfig(
            rank=given["rank"], alpha=given["alpha"], targets=given["targets"]
        ),
    )  # fmt: skip
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=1), jax.devices()[:1])
    frozen = state_lib.abstract_frozen(model, mesh, mesh_lib.AxisRules())
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen))
    layers = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(frozen["blocks"]))
    sums = dict(sums_of(header))
    for sum_, value in (
        ("2 * 6.74", size / 1e9),
        ("2 * 6.48", layers / 1e9),
        ("20 * 0.040", 20 * lora.count(model) / 1e9),
    ):
        assert sums[sum_] == pytest.approx(value, rel=0.011), sum_
    # What is written makes one more copy of the layers, for which 24 GB are not enough.
    assert found["evaluation_config"]["samples"] == 0 and size + layers > 24e9


def test_overview_lists_all_commands(capsys):
    assert run.main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_config_search(capsys):
    assert run.main(["config", "--search", "lr"]) == 0
    text = capsys.readouterr().out
    assert "jinstr sft  (gin_configs/run/sft.gin)\n  LEARNING_RATE: float = 2e-4  # peak\n" in text
    assert "optimizer.OptimizerConfig  (jinstr/train/optimizer.py)\n  learning_rate: float" in text
    # Negative control: what there is none of.
    assert run.main(["config", "--search", "lerning_rate"]) == 0
    nothing = capsys.readouterr().out
    assert nothing == '0 settings with "lerning_rate"; did you mean learning_rate?\n'


def test_output_that_nobody_reads(tmp_path):
    """`jinstr … | head`: no traceback; what else is broken is told."""
    script = "import sys, time; time.sleep(0.5); from jinstr import run; sys.exit(run.console())"
    words = f"{sys.executable} -c '{script}' ppo --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == 141 and done.stderr == ""


def test_a_broken_pipe_of_something_else_is_told(monkeypatch):
    def breaks(request):
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr(run, "run", breaks)
    with pytest.raises(BrokenPipeError):
        run._main(["config"])
