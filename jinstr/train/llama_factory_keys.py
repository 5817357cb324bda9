"""Keys of LLaMA-Factory: reading them with their types, and those that become no setting of jinstr, with why."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinstr import errors, settings
from jinstr.data.llama_factory import ACT, NONE, RESULTS, Note


class Setting(NamedTuple):
    """One line of the recipe."""

    name: str
    value: Any
    why: str  # the keys that it comes from, and the sum


@dataclasses.dataclass(kw_only=True)
class Reader:
    """The keys of a configuration; remembers which were asked for."""

    file: str
    values: Mapping[str, Any]
    asked: set[str] = dataclasses.field(default_factory=set)

    def has(self, key: str) -> bool:
        """Is the key given, with a value?"""
        return self.values.get(key) is not None

    def get(self, key: str, default: Any, kind: type | None = None) -> Any:
        """The value of a key, of the type of `default`. Errors: ConfigError naming file, key and value.

        YAML reads 1e-4, without a point, as text; such a number counts as one. Values are shown shortened: a small
        file may hold, by references, a list of endless lists.
        """
        self.asked.add(key)
        value = self.values.get(key)
        kind = kind or type(default)
        if value is None:
            return default
        if kind in (int, float) and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                pass
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not settings.matches(value, kind) or (kind is float and not math.isfinite(value)):
            message = (
                f"{key} = {reprlib.repr(value)} ({type(value).__name__}), but it is {kind.__name__}"
            )
            raise errors.ConfigError("JI-IMPORT-003", f"{self.file}: {message}")
        return kind(value)

    def word(self, key: str, default: str) -> str:
        """A word, where YAML reads no, without quotes, as False. Errors: ConfigError."""
        if self.values.get(key) is False:
            self.asked.add(key)
            return "no"
        return self.get(key, default)

    def positive(self, key: str, default: int) -> int:
        """A whole number above 0. Errors: ConfigError."""
        value = self.get(key, default)
        if value < 1:
            message = f"{self.file}: {key} = {value}, but it is at least 1"
            raise errors.ConfigError("JI-IMPORT-003", message)
        return value


_HERE = "jinstr decides it by itself"
_ROWS = {  # keys → (why, effect)
    "bf16 pure_bf16 bf16_full_eval": (
        "accelerators compute in bf16, parameters and moments stay f32",
        NONE,
    ),
    "fp16": ("accelerators compute in bf16, not f16", RESULTS),
    "fp8 fp8_backend": ("no f8 matrix products", RESULTS),
    "flash_attn use_unsloth use_unsloth_gc enable_liger_kernel use_v1_kernels use_reentrant_gc tf32": (
        _HERE,
        NONE,
    ),
    "torch_compile ddp_timeout ddp_find_unused_parameters low_cpu_mem_usage use_cache use_kv_cache": (
        _HERE,
        NONE,
    ),
    "dataloader_num_workers dataloader_pin_memory preprocessing_batch_size streaming buffer_size": (
        _HERE,
        NONE,
    ),
    "overwrite_cache cache_dir tokenized_path": (
        "prepared data are found again by what they were made from",
        NONE,
    ),
    "remove_unused_columns use_fast_tokenizer ignore_pad_token_for_loss group_by_length": (
        _HERE,
        NONE,
    ),
    "overwrite_output_dir": ("a run directory is never overwritten; take another RUN_DIR", NONE),
    "resume_from_checkpoint": ("the same command goes on by itself (RESUME)", NONE),
    "trust_remote_code": ("no code of a model's repository is ever run", NONE),
    "plot_loss": ("every run writes report.html", NONE),
    "do_train do_eval": (
        "the command trains, and evaluates what HOLDOUT or EVAL_DATA keeps aside",
        NONE,
    ),
    "per_device_eval_batch_size eval_accumulation_steps eval_on_start eval_on_each_dataset": (
        _HERE,
        NONE,
    ),
    "report_to run_name logging_dir logging_strategy logging_first_step disable_tqdm use_swanlab swanlab_project": (
        "RUN_DIR/metrics.jsonl and TensorBoard are always written; WANDB=project for Weights & Biases",
        NONE,
    ),
    "save_only_model save_safetensors include_num_input_tokens_seen include_effective_tokens_per_second": (
        "checkpoints hold everything that a run needs to go on",
        NONE,
    ),
    "push_to_hub hub_model_id hub_token hf_hub_token ms_hub_token om_hub_token swanlab_api_key": (
        "nothing is uploaded, and no secret belongs in a recipe",
        NONE,
    ),
    "load_best_model_at_end metric_for_best_model greater_is_better compute_accuracy predict_with_generate": (
        "the last step is what a run ends with; name another one as RUN_DIR@step",
        RESULTS,
    ),
    "ref_model reward_model pref_beta pref_loss ppo_epochs": ("belongs to another stage", NONE),
    "temperature top_p top_k max_new_tokens infer_backend infer_dtype do_predict": (
        "belongs to generation: jinstr generate",
        NONE,
    ),
    "train_on_prompt": ("only answers are trained on, never the prompt", RESULTS),
    "mask_history": ("every answer of a conversation is trained on, not only the last", RESULTS),
    "neftune_noise_alpha": ("no noise on embeddings", RESULTS),
    "label_smoothing_factor": ("no smoothing of labels", RESULTS),
    "loraplus_lr_ratio loraplus_lr_embedding": (
        "one learning rate for both parts of an adapter",
        RESULTS,
    ),
    "use_dora pissa_init pissa_iter pissa_convert": ("plain LoRA, from zero", RESULTS),
    "additional_target modules_to_save": ("nothing but the adapters is trained", RESULTS),
    "adapter_name_or_path create_new_adapter adapter_folder": (
        "one adapter that goes on being trained becomes LORA_INIT; merge any other into its base first",
        ACT,
    ),
    "quantization_bit quantization_method quantization_type double_quantization": (
        "the frozen base stays in bf16, 2 bytes a parameter",
        RESULTS,
    ),
    "use_galore use_apollo use_badam use_adam_mini use_muon use_dft_loss use_llama_pro": (
        "no counterpart; OPTIMIZER knows adamw, muon and adafactor",
        RESULTS,
    ),
    "rope_scaling shift_attn mixture_of_depths upcast_layernorm moe_aux_loss_coef": (
        "the model is computed as INIT describes it",
        RESULTS,
    ),
    "resize_vocab add_tokens add_special_tokens new_special_tokens_config": (
        "the vocabulary is that of INIT",
        RESULTS,
    ),
    "split_special_tokens": ("text that looks like a control token always stays text", RESULTS),
    "enable_thinking tool_format default_system": (
        "conversations are written as TEMPLATE does it",
        RESULTS,
    ),
    "train_from_scratch": ("leave out INIT and give a model's shape: gin_configs/model/", ACT),
    "data_seed": ("SEED orders the data too", RESULTS),
    "media_dir image_max_pixels video_max_pixels freeze_vision_tower": (
        "jinstr trains on text only",
        RESULTS,
    ),
}
LEFT = {key: facts for keys, facts in _ROWS.items() for key in keys.split()}


def left_over(read: Reader) -> list[Note]:
    """A note for every key that no setting was made of."""
    notes = []
    for key in read.values:
        if key in read.asked:
            continue
        near = settings.did_you_mean(key, {*LEFT, *read.asked})
        why, effect = LEFT.get(key, (f"not a key that is known here{near}", RESULTS))
        is_off = read.values[key] in (None, False, 0, 0.0, "", "none", "no")
        notes.append(Note(key, why, NONE if is_off and key in LEFT else effect))
    return notes
