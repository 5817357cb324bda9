"""A training configuration of LLaMA-Factory as settings of `jinstr sft` or `pretrain`, derived numbers with their sums.

Keys and defaults: src/llamafactory/hparams of hiyouga/LLaMA-Factory, and TrainingArguments of transformers, which it
extends. Where a default of theirs changes results it is written down although the configuration leaves it out.
"""

from __future__ import annotations

import math

from jinstr import errors
from jinstr.data.llama_factory import NONE, RESULTS, Note
from jinstr.train import llama_factory_optimizer
from jinstr.train.llama_factory_keys import Reader, Setting

STAGES = ("pt", "sft")


def command(read: Reader) -> str:
    """The command that trains the stage. Errors: ConfigError for a stage that jinstr does not have."""
    stage = read.get("stage", "sft")
    if stage not in STAGES:
        raise errors.ConfigError(
            "JI-IMPORT-004",
            f"{read.file}: stage = {stage!r}: jinstr imports {' and '.join(STAGES)} only",
        )
    if not read.get("do_train", True):
        raise errors.ConfigError(
            "JI-IMPORT-004",
            f"{read.file}: do_train = False: only configurations that train can be imported",
        )
    # Text can be trained on by sft too, which has the adapters.
    return "sft" if stage == "sft" or read.get("finetuning_type", "lora") == "lora" else "pretrain"


def model(read: Reader) -> list[Setting]:
    """INIT, whose tokenizer comes with it. Errors: ConfigError without a model."""
    name = read.get("model_name_or_path", "")
    if not name:
        message = f"{read.file}: model_name_or_path is not given; it says what to start from"
        raise errors.ConfigError("JI-IMPORT-003", message)
    revision = read.get("model_revision", "main")
    init = f"hf:{name}" + (f"@{revision}" if revision != "main" else "")
    return [Setting("INIT", init, "model_name_or_path")]


def settings_of(read: Reader, devices: int, notes: list[Note]) -> list[Setting]:
    """Every setting but those of the data, in the order of a recipe; `notes` get what is not taken over.

    Errors: ConfigError naming file, key and value.
    """
    trains = command(read)
    is_text = read.get("stage", "sft") == "pt"
    found = model(read)
    if is_text and trains == "sft":
        found.append(Setting("TEMPLATE", "alpaca-ja", "not used: the data are text"))
        read.asked.add("template")
    elif not is_text:
        found += template(read, notes)
    else:
        read.asked.add("template")
    found += [
        *batches(read, devices, notes),
        length(read),
        *llama_factory_optimizer.optimizer(read, notes),
    ]
    found += lora(read, notes) + looking(read, notes)
    found += machine(read, devices, trains == "sft", notes)
    found.append(Setting("SEED", read.get("seed", 42), "seed"))
    if read.has("preprocessing_num_workers"):
        workers = read.positive("preprocessing_num_workers", 1)
        found.append(Setting("WORKERS", workers, "preprocessing_num_workers"))
    run_dir = read.get("output_dir", "runs/imported")
    return [*found, Setting("RUN_DIR", run_dir, "output_dir")]


def batches(read: Reader, devices: int, notes: list[Note]) -> list[Setting]:
    """SEQ_LEN, BATCH_TOKENS and MICROBATCHES."""
    length = read.positive("cutoff_len", 2048)
    each = read.positive("per_device_train_batch_size", 8)
    parts = read.positive("gradient_accumulation_steps", 1)
    total = each * parts * devices * length
    is_packed = read.get("packing", read.get("stage", "sft") == "pt")
    is_neat = read.get("neat_packing", False)
    if not is_packed and not is_neat:
        why = (
            f"LLaMA-Factory pads: its batch is {each * parts * devices:,} examples. jinstr packs, so as many places "
            "hold more examples and an epoch has fewer steps; for as many steps take BATCH_TOKENS = examples × their "
            "mean length"
        )
        notes.append(Note("packing", why, RESULTS))
    elif not is_neat:
        why = (
            "rows are always packed, and examples in one row never see each other (as neat_packing)"
        )
        notes.append(Note("packing", why, RESULTS))
    if read.get("stage", "sft") != "pt":
        why = "an example that is longer is left out and counted, not cut"
        notes.append(Note("cutoff_len", why, RESULTS))
    sum_ = f"{each} per device × {parts} accumulated × {devices} devices × {length:,} places"
    return [
        Setting("SEQ_LEN", length, "cutoff_len"),
        Setting("BATCH_TOKENS", total, sum_),
        Setting("MICROBATCHES", parts, "gradient_accumulation_steps"),
    ]


def length(read: Reader) -> Setting:
    """NUM_STEPS or EPOCHS."""
    epochs, steps = read.get("num_train_epochs", 3.0), read.get("max_steps", -1)
    if steps > 0:
        return Setting("NUM_STEPS", steps, "max_steps, which wins over num_train_epochs")
    return Setting("EPOCHS", epochs, "num_train_epochs")


_PROJECTIONS = {  # theirs → jinstr's
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "o_proj": ("out",),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    # GPT-NeoX
    "query_key_value": ("query", "key", "value"),
    "dense": ("out",),
    "dense_h_to_4h": ("up",),
    "dense_4h_to_h": ("down",),
}
_ALL = "query,key,value,out,gate,up,down"


def lora(read: Reader, notes: list[Note]) -> list[Setting]:
    """LORA_RANK, LORA_ALPHA, LORA_TARGETS, or LORA_INIT, which has them; nothing for finetuning_type: full.

    Errors: ConfigError for another type.
    """
    kind = read.get("finetuning_type", "lora")  # their default
    if kind == "full":
        return []
    if kind != "lora":
        raise errors.ConfigError(
            "JI-IMPORT-004",
            f"{read.file}: finetuning_type = {kind!r}: jinstr trains all parameters (full) or adapters (lora)",
        )
    if start := _adapter(read, notes):
        return [Setting("LORA_INIT", start, "adapter_name_or_path: the folder of a PEFT adapter")]
    rank = read.positive("lora_rank", 8)
    alpha = read.get("lora_alpha", float(2 * rank))
    why = "lora_alpha" if read.has("lora_alpha") else "lora_alpha: twice the rank, their default"
    if read.get("use_rslora", False):
        why = f"use_rslora scales by alpha / √rank: {alpha:g} × √{rank}, which alpha / rank then gives"
        alpha = round(alpha * math.sqrt(rank), 6)
    targets: list[str] = []
    for word in read.get("lora_target", "all").replace(" ", "").split(","):
        if word not in _PROJECTIONS and word != "all":
            notes.append(Note("lora_target", f"{word} has no counterpart and is left out", RESULTS))
        targets += _ALL.split(",") if word == "all" else _PROJECTIONS.get(word, ())
    if not targets:
        message = f"{read.file}: lora_target names no projection that jinstr has ({_ALL})"
        raise errors.ConfigError("JI-IMPORT-004", message)
    if dropout := read.get("lora_dropout", 0.0):
        notes.append(Note("lora_dropout", f"adapters have no dropout ({dropout:g} asked)", RESULTS))
    return [
        Setting("LORA_RANK", rank, "lora_rank"),
        Setting("LORA_ALPHA", alpha, why),
        Setting("LORA_TARGETS", ",".join(dict.fromkeys(targets)), "lora_target"),
    ]


def _adapter(read: Reader, notes: list[Note]) -> str:
    """The folder of the one adapter that training goes on with, or "" where a new one is trained.

    LLaMA-Factory merges others than the last into the base, and with create_new_adapter all: those stay notes.
    """
    if not read.has("adapter_name_or_path"):
        return ""
    start = read.get("adapter_name_or_path", "").strip()
    if not start or "," in start or read.get("create_new_adapter", False):
        read.asked.discard("adapter_name_or_path")  # left over: merge them first
        return ""
    if folder := read.get("adapter_folder", ""):
        start = f"{start.rstrip('/')}/{folder}"
    own = {"lora_rank", "lora_alpha", "lora_target", "use_rslora"}
    read.asked |= own
    if given := sorted(name for name in own if read.has(name)):
        notes.append(Note(", ".join(given), "those of the adapter hold", NONE))
    if dropout := read.get("lora_dropout", 0.0):
        notes.append(Note("lora_dropout", f"adapters have no dropout ({dropout:g} asked)", RESULTS))
    return start


_TEMPLATES = {  # theirs → (jinstr's, what differs)
    "chatml": ("chatml", ""),
    "qwen": ("chatml", "no system text stands before a conversation that has none"),
    "llama2": ("llama2", "a Japanese system text stands before a conversation that has none"),
    "llama3": ("llama3", "a Japanese system text stands before a conversation that has none"),
    "gemma": ("gemma", ""),
    "gemma2": ("gemma", ""),
}


def template(read: Reader, notes: list[Note]) -> list[Setting]:
    """TEMPLATE where there is a counterpart, else that of INIT."""
    name = read.get("template", "")
    ours, differs = _TEMPLATES.get(name, ("", ""))
    if not ours:
        said = f"{name} has" if name else "not given, and it has"
        why = f"{said} no counterpart; the recipe takes the one of INIT, else chatml; compare with jinstr inspect"
        notes.append(Note("template", why, RESULTS))
    elif differs:
        notes.append(Note("template", f"{ours}: {differs}", RESULTS))
    return [Setting("TEMPLATE", ours, "template")]


def looking(read: Reader, notes: list[Note]) -> list[Setting]:
    """When to log, evaluate and save."""
    found = []
    if read.has("logging_steps"):
        found.append(Setting("LOG_EVERY", _steps(read, "logging_steps", notes), "logging_steps"))
    when = read.word("eval_strategy", read.word("evaluation_strategy", "no"))
    read.asked.add("eval_steps")
    every = 0
    if read.has("eval_steps") and when not in ("epoch", "no"):
        every = _steps(read, "eval_steps", notes)
    elif when == "epoch":
        notes.append(
            Note("eval_strategy", "epoch: evaluated at the end only; set EVAL_EVERY", NONE)
        )
    found.append(Setting("EVAL_EVERY", every, "eval_steps; 0 = at the end"))
    if read.word("save_strategy", "steps") != "steps":
        notes.append(
            Note("save_strategy", "jinstr saves every SAVE_EVERY steps and at the end", NONE)
        )
    found.append(Setting("SAVE_EVERY", _steps(read, "save_steps", notes) or 500, "save_steps"))
    if read.has("save_total_limit"):
        found.append(Setting("KEEP", read.positive("save_total_limit", 2), "save_total_limit"))
    return found


def _steps(read: Reader, key: str, notes: list[Note]) -> int:
    """A number of steps; a share of the run is one where the steps of the run are known, else 0."""
    value, total = read.get(key, 500.0), max(0, read.get("max_steps", -1))
    if value >= 1:
        return int(value)
    if not total:
        notes.append(Note(key, f"{value:g} of a run whose steps are not known yet", NONE))
    return math.ceil(value * total)


def machine(read: Reader, devices: int, is_sft: bool, notes: list[Note]) -> list[Setting]:
    """Sharding over devices, and what the backward pass computes again."""
    found = []
    read.asked |= {"deepspeed", "fsdp", "fsdp_config"}
    if devices > 1 and (read.has("deepspeed") or read.has("fsdp")):
        found += [
            Setting("MESH_DATA", 1, ""),
            Setting("MESH_FSDP", devices, "deepspeed, fsdp: parameters and moments in parts"),
        ]
    elif read.has("deepspeed") or read.has("fsdp"):
        notes.append(
            Note(
                "deepspeed" if read.has("deepspeed") else "fsdp",
                "DEVICES=1: nothing to divide",
                NONE,
            )
        )
    if not read.get("disable_gradient_checkpointing", False):
        name = "REMAT" if is_sft else "config.DecoderConfig.remat"
        found.append(Setting(name, "full", "gradient checkpointing, which is on unless disabled"))
    return found
