"""LLaMA-Factory configurations as recipes: each resolves, every number is derived, every lost key is named."""

import json
import pathlib

import pytest

from jinstr import errors, run
from jinstr.data import llama_factory as data_lib
from jinstr.data import sources
from jinstr.train import llama_factory_keys as keys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

FULL = """\
### model
model_name_or_path: rinna/youri-7b
model_revision: v1
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: full
deepspeed: examples/deepspeed/ds_z3_config.json

### dataset
dataset: ichikara, dolly_ja
template: alpaca_ja_own
cutoff_len: 2048
max_samples: 3000
val_size: 0.05
overwrite_cache: true
preprocessing_num_workers: 4

### output
output_dir: saves/youri/full
logging_steps: 10
save_steps: 200
save_total_limit: 3
plot_loss: true

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 4
learning_rate: 1e-5
num_train_epochs: 2
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
neftune_noise_alpha: 5
flash_atn: fa2
hf_hub_token: hf_0123456789abcdefghijABCDEFGHIJ

### eval
eval_strategy: steps
eval_steps: 100
"""
LORA = """\
model_name_or_path: models/qwen
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_alpha: 32
lora_target: q_proj,v_proj
lora_dropout: 0.05
use_rslora: true
dataset: talk,openai_talk
template: qwen
cutoff_len: 4096
packing: true
neat_packing: true
output_dir: saves/qwen/lora
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
max_steps: 1000
lr_scheduler_type: linear
warmup_steps: 50
fp16: true
mix_strategy: interleave_over
interleave_probs: 0.75,0.25
seed: 7
"""
PRETRAIN = """\
model_name_or_path: models/llama2
stage: pt
do_train: true
finetuning_type: full
dataset: wiki
cutoff_len: 4096
output_dir: saves/llama2/pt
per_device_train_batch_size: 4
learning_rate: 2.0e-5
max_steps: 5000
lr_scheduler_type: cosine_with_min_lr
lr_scheduler_kwargs:
  min_lr_rate: 0.1
warmup_ratio: 0.02
weight_decay: 0.1
adam_beta2: 0.95
"""
DPO = """\
model_name_or_path: models/llama2
stage: dpo
finetuning_type: lora
dataset: pairs
pref_beta: 0.1
"""
# Nine lists, each of which holds the one before ten times over.
BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
INFO = {
    "ichikara": {
        "file_name": "ichikara.json",
        "columns": {"prompt": "text", "response": "output", "system": "sys"},
    },
    "dolly_ja": {
        "hf_hub_url": "kunishou/databricks-dolly-15k-ja",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    },
    "talk": {"file_name": "talk.json", "formatting": "sharegpt", "columns": {"messages": "turns"}},
    "openai_talk": {
        "file_name": "openai.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        },
    },
    "wiki": {"file_name": "wiki.jsonl", "columns": {"prompt": "body"}},
    "pairs": {"file_name": "pairs.json", "ranking": True},
    "odd": {"file_name": 3},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO, ensure_ascii=False), "utf-8")
    return tmp_path


def imported(place, capsys, text, *words):
    """The recipe of a configuration, as written."""
    (place / "train.yaml").write_text(text, "utf-8")
    out = place / "out.gin"
    out.unlink(missing_ok=True)
    status = run.main(["import-config", "train.yaml", "dataset_info.json", "OUT=out.gin", *words])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    recipe = out.read_text("utf-8")
    assert printed.out.startswith(recipe)
    return recipe


def refused(place, capsys, text, *words):
    (place / "train.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run.main(["import-config", "train.yaml", "dataset_info.json", *words]) == 78
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("jinstr: JI-IMPORT-")
    return line


def resolved(capsys, command):
    """The settings that out.gin resolves to."""
    assert run.main([command, "out.gin", "--dry_run"]) == 0
    return json.JSONDecoder().raw_decode(capsys.readouterr().out)[0]["settings"]


def told(recipe, title):
    """The keys below a heading of the recipe's end."""
    lines = recipe.partition(f"\n# {title}")[2].split("\n\n")[0].split("\n")[1:]
    return {line.strip("# ").partition(": ")[0] for line in lines if line}


CHANGES, SAME = "Not taken over as it stands, changes", "Not taken over, changes no"


def test_full_tuning_on_alpaca_rows(place, capsys):
    recipe = imported(place, capsys, FULL, "DEVICES=8")
    found = resolved(capsys, "sft")
    assert found["init"] == "hf:rinna/youri-7b@v1" and found["run_dir"] == "saves/youri/full"
    assert found["data"]["seq_len"] == 2048 and found["data"]["batch_tokens"] == 2 * 4 * 8 * 2048
    assert "# 2 per device × 4 accumulated × 8 devices × 2,048 places" in recipe
    assert found["loop_config"]["microbatches"] == 4 and found["loop_config"]["epochs"] == 2
    optimizer = found["optimizer"]
    assert (optimizer["learning_rate"], optimizer["beta2"]) == (1e-5, 0.999)
    assert (optimizer["schedule"], optimizer["final_share"]) == ("cosine", 0.0)
    assert found["mesh"]["fsdp"] == 8 and found["execution"]["remat"] == "full"
    assert (found["loop_config"]["eval_every"], found["checkpoint"]["keep"]) == (100, 3)
    ichikara, dolly = found["data"]["data"]
    assert (ichikara["path"], ichikara["fields"]) == ("ichikara.json", "instruction=text")
    assert (ichikara["limit"], ichikara["holdout"]) == (3000, 0.05)
    assert dolly["provenance"].endswith("/kunishou/databricks-dolly-15k-ja")
    assert told(recipe, "To do before") == {"dolly_ja.hf_hub_url"}
    assert told(recipe, CHANGES) == {
        "template",
        "packing",
        "cutoff_len",
        "ichikara.columns.query",
        "ichikara.columns.system",
        "dolly_ja.columns.query",
        "val_size",
        "neftune_noise_alpha",
        "flash_atn",
    }
    assert {"bf16", "trust_remote_code", "plot_loss", "hf_hub_token"} <= told(recipe, SAME)
    assert "did you mean flash_attn?" in recipe and "hf_0123" not in recipe


def test_adapters_on_conversations(place, capsys):
    recipe = imported(place, capsys, LORA)
    assert 'LORA_TARGETS = "query,value"' in recipe and "LORA_RANK = 16" in recipe
    assert "LORA_ALPHA = 128.0  # use_rslora scales by alpha / √rank: 32 × √16" in recipe
    found = resolved(capsys, "sft")
    optimizer = found["optimizer"]
    # Linear: 50 of 1,000 steps up, all others down to 0.
    assert (optimizer["schedule"], optimizer["warmup_steps"]) == ("wsd", 50)
    assert (optimizer["decay_share"], optimizer["final_share"]) == (0.95, 0.0)
    assert found["loop_config"]["num_steps"] == 1000 and found["seed"] == 7
    talk, openai = found["data"]["data"]
    assert (talk["format"], talk["fields"], talk["rate"]) == (
        "sharegpt",
        "conversations=turns",
        0.75,
    )
    assert (openai["format"], openai["fields"], openai["rate"]) == ("messages", "", 0.25)
    assert found["data"]["rate_unit"] == "examples" and found["template"] == "chatml"
    changed = told(recipe, CHANGES)
    assert {"lora_dropout", "fp16", "mix_strategy", "template"} <= changed
    assert "packing" not in changed  # neat_packing is what jinstr does


def test_training_goes_on_with_an_adapter(place, capsys):
    own = LORA + "adapter_name_or_path: saves/first\nadapter_folder: last\n"
    recipe = imported(place, capsys, own)
    assert 'LORA_INIT = "saves/first/last"' in recipe and "LORA_RANK" not in recipe
    lora = resolved(capsys, "sft")["execution"]["lora"]
    assert (lora["start"], lora["rank"], lora["alpha"]) == ("saves/first/last", 0, 0.0)
    assert told(recipe, SAME) >= {"lora_alpha, lora_rank, lora_target, use_rslora"}
    assert "lora_dropout" in told(recipe, CHANGES) and "To do before" not in recipe
    # Negative controls: adapters that LLaMA-Factory merges into the base, and training without adapters.
    for changed in (
        own.replace("saves/first", "saves/first,saves/second"),
        own + "create_new_adapter: true\n",
        own.replace("type: lora", "type: full"),
    ):
        recipe = imported(place, capsys, changed)
        assert "LORA_INIT" not in recipe.replace("becomes LORA_INIT", "")
        assert "adapter_name_or_path" in told(recipe, "To do before")


def test_a_recipe_with_adapters_resolves_as_written(place, capsys):
    imported(place, capsys, LORA)
    assert "LORA_RANK" in pathlib.Path("out.gin").read_text("utf-8")
    assert resolved(capsys, "sft")["seed"] == 7


def test_pretraining_on_text(place, capsys):
    recipe = imported(place, capsys, PRETRAIN, "DEVICES=4")
    found = resolved(capsys, "pretrain")
    assert found["init"] == "hf:models/llama2" and found["tokenizer"] == ""  # that of INIT
    (wiki,) = found["data"]["data"]
    assert (wiki["format"], wiki["fields"]) == ("text", "text=body")
    assert found["data"]["batch_tokens"] == 4 * 4 * 4096
    optimizer = found["optimizer"]
    assert optimizer["warmup_steps"] == 100 and "# warmup_ratio 0.02 × 5,000 steps" in recipe
    assert (optimizer["final_share"], optimizer["beta2"]) == (0.1, 0.95)
    # Adapters on text: the command that has them.
    lora = imported(place, capsys, PRETRAIN.replace("type: full", "type: lora"))
    assert "jinstr sft out.gin" in lora and "LORA_RANK = 8" in lora
    assert resolved(capsys, "sft")["data"]["data"][0]["format"] == "text"


def test_rows_of_their_files_are_read(place, capsys):
    """The names of columns and roles in the recipe are those that the files have."""
    (place / "ichikara.json").write_text(
        '[{"text": "問い", "output": "答え", "sys": "略"}]', "utf-8"
    )
    turns = [{"from": "human", "value": "問い"}, {"from": "gpt", "value": "答え"}]
    (place / "talk.json").write_text(json.dumps([{"turns": turns}]), "utf-8")
    turns = [{"role": "user", "content": "問い"}, {"role": "assistant", "content": "答え"}]
    (place / "openai.jsonl").write_text(json.dumps({"messages": turns}), "utf-8")
    text = FULL.replace("ichikara, dolly_ja", "ichikara,talk,openai_talk").replace("0.05", "0")
    imported(place, capsys, text)
    for fields in resolved(capsys, "sft")["data"]["data"]:
        (example,) = sources.read(sources.SourceConfig(**fields))
        assert example["roles"] == ["user", "assistant"], fields["name"]
        assert example["contents"] == ["問い", "答え"]
    # Negative control: without the names of the columns nothing is read.
    with pytest.raises(errors.DataError):
        list(sources.read(sources.SourceConfig(path="ichikara.json", format="alpaca")))


def test_their_defaults_are_written_down(place, capsys):
    """What a configuration leaves out is theirs, not ours, wherever it changes results."""
    text = "model_name_or_path: m/n\nfinetuning_type: full\ndataset: talk\n"
    imported(place, capsys, text)
    found = resolved(capsys, "sft")
    assert found["data"]["seq_len"] == 2048 and found["data"]["batch_tokens"] == 8 * 2048
    assert (found["seed"], found["loop_config"]["epochs"]) == (42, 3.0)
    wanted = {"learning_rate": 5e-5, "schedule": "wsd", "decay_share": 1.0, "final_share": 0.0}
    wanted |= {"warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 1.0, "beta2": 0.999}
    assert {name: found["optimizer"][name] for name in wanted} == wanted


@pytest.mark.parametrize("stage", ["dpo", "rm", "ppo", "kto"])
def test_stages_that_are_not_there(stage, place, capsys):
    line = refused(place, capsys, DPO.replace("dpo", stage))
    assert f"train.yaml: stage = '{stage}'" in line and "JI-IMPORT-004" in line


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("b: 2\na: [1", "train.yaml:2: not plain YAML"),
        (b"\xff\xfe\x00", "train.yaml is not readable"),
        ("- a\n- b\n", "train.yaml holds list"),
        ("", "train.yaml holds NoneType"),
        ("x: !!python/object/apply:os.system ['true']", "train.yaml:1: not plain YAML"),
        ("[" * 3000, "train.yaml"),
        ("on: 1\n", "train.yaml: the key True (bool) is not text"),
        ("dataset: talk\n", "train.yaml: model_name_or_path is not given"),
        ("model_name_or_path: a\n", "train.yaml: dataset is not given"),
        ("model_name_or_path: a\ndataset: tolk\n", "no data set 'tolk'; did you mean talk?"),
        ("model_name_or_path: a\ndataset: 3\n", "train.yaml: dataset = 3 names no data sets"),
        ("model_name_or_path: a\ndataset: odd\n", "dataset_info.json: odd.file_name = 3 (int)"),
        ("model_name_or_path: a\ndataset: pairs\n", "dataset_info.json: pairs.ranking"),
        ("model_name_or_path: a\nstage: pt\ndataset: talk\n", "talk.formatting = 'sharegpt'"),
        ("model_name_or_path: a\ncutoff_len: long\n", "cutoff_len = 'long' (str), but it is int"),
        ("model_name_or_path: a\nlearning_rate: [1]\n", "learning_rate = [1] (list)"),
        ("model_name_or_path: a\nlearning_rate: .nan\n", "learning_rate = nan"),
        ("model_name_or_path: a\nlora_rank: 0\n", "lora_rank = 0, but it is at least 1"),
        ("model_name_or_path: a\nfinetuning_type: oft\n", "finetuning_type = 'oft'"),
        ("model_name_or_path: a\nlora_target: c_attn\n", "lora_target names no projection"),
        ("model_name_or_path: a\ndo_train: false\n", "do_train = False"),
        ("model_name_or_path: a\neval_strategy: 3\n", "eval_strategy = 3 (int)"),
        ("model_name_or_path: a\noutput_dir: 2024-01-01\n", "output_dir = "),
        (f"{BOMB}stage: *i\n", "stage = [[["),
        (f"{BOMB}model_name_or_path: a\ndataset: *i\n", "dataset = [[["),
        (
            "model_name_or_path: a\ndataset: talk\nmix_strategy: interleave_over\ninterleave_probs: 1,2\n",
            "interleave_probs = '1,2' is no number for each of 1",
        ),
    ],
)
def test_bad_input_is_one_line(text, wanted, place, capsys):
    assert wanted in refused(place, capsys, text)


def test_bad_dataset_info(place, capsys):
    (place / "dataset_info.json").write_text("{", "utf-8")
    assert "dataset_info.json is not readable" in refused(place, capsys, FULL)
    (place / "dataset_info.json").unlink()
    assert "DATASETS=" in refused(place, capsys, FULL)


def test_text_of_a_configuration_is_never_a_line_of_the_recipe(place, capsys):
    evil = 'x"\nSEED = 99\n# '
    info = {evil: {"file_name": f"{evil}.json", "columns": {"prompt": evil.replace("=", "")}}}
    (place / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    values = {"model_name_or_path": evil, "finetuning_type": "full", "dataset": evil.strip()}
    info[evil.strip()] = info[evil]
    (place / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    imported(place, capsys, json.dumps(values | {f"key\nSEED = 98\n#{evil}": 1}))
    (place / evil).mkdir()  # a folder may have any name; one of the hub may not
    (place / evil / "config.json").write_text("{}")
    assert run.main(["sft", "out.gin", "--dry_run"]) == 78
    assert "architecture None is not supported" in capsys.readouterr().err
    (place / evil / "config.json").unlink()
    found = resolved(capsys, "sft")
    assert found["seed"] == 42 and found["init"] == f"hf:{evil}"
    (source,) = found["data"]["data"]
    assert source["name"] == evil.strip() and source["path"] == f"{evil}.json"


def test_another_recipe_is_not_overwritten(place, capsys):
    imported(place, capsys, LORA)
    assert run.main(["import-config", "train.yaml", "dataset_info.json", "OUT=out.gin"]) == 0
    capsys.readouterr()
    line = refused(place, capsys, LORA.replace("seed: 7", "seed: 8"), "OUT=out.gin")
    assert "OUT=out.gin is there already" in line


def test_words_of_the_command_line_go_to_settings_in_order(capsys):
    # A setting that has its value by name is no longer waited for.
    for words in (["train.yaml", "info.json"], ["TRAIN=train.yaml", "info.json"]):
        assert run.main(["import-config", *words, "--dry_run"]) == 0
        found = json.loads(capsys.readouterr().out)["settings"]
        assert (found["train"], found["datasets"]) == ("train.yaml", "info.json")
    assert run.main(["import-config", "a.yaml", "b.json", "c.json", "--dry_run"]) == 78
    assert "'c.json' is neither" in capsys.readouterr().err


def test_every_listed_key_has_an_effect_that_is_known():
    assert {effect for _, effect in keys.LEFT.values()} == {
        data_lib.ACT,
        data_lib.NONE,
        data_lib.RESULTS,
    }
