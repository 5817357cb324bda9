"""The shape of a decoder: every field that the supported families differ in.

Families: Llama 1–3, Mistral, Qwen 2/2.5/3, Gemma 2/3 (text), GPT-NeoX.
"""

from __future__ import annotations

import dataclasses
import json

from jinstr import errors, settings

PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")
# What of a layer the forward pass leaves on the device for the backward pass, which computes the rest again; from much
# memory to little. After MaxText's ladder: minimal is its minimal_with_context, attention its
# save_dot_with_context_except_mlp, offload the latter and layers' inputs in the host's memory. The TPU compiler's own
# figures fall along it, but for offload on small layers: what is on its way then takes more than `full` keeps.
REMAT = {
    "none": "everything",
    "minimal": "what matrix products and attention make",
    "dots": "what matrix products make; attention is computed again",
    "attention": "what attention and its products make; the feed-forward part is computed again",
    "full": "inputs of layers",
    "offload": "nothing: inputs of layers and what `attention` keeps wait in the host's memory",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): x @ W + scale · (x @ A) @ B, where W stays as it is."""

    rank: int = 0  # columns of A and rows of B; 0 = no adapters, everything is trained
    alpha: float = 0.0  # scale = alpha / rank; 0 = twice the rank
    targets: str = ",".join(
        PROJECTIONS
    )  # projections that get adapters; gate only where there is one
    rslora: bool = False  # scale = alpha / sqrt(rank) (arXiv 2312.03732)
    start: str = ""  # folder of a PEFT adapter to begin as; its rank, alpha and targets hold

    def __post_init__(self):
        if self.rank < 0 or self.alpha < 0:
            raise errors.ConfigError(
                "JI-LORA-001", f"rank={self.rank}, alpha={self.alpha:g}; neither may be below 0"
            )
        unused = self.alpha or self.rslora or self.targets != ",".join(PROJECTIONS)
        if unused and not (self.rank or self.start):
            raise errors.ConfigError(
                "JI-LORA-001", f"{self}: without a rank there are no adapters; set LORA_RANK"
            )
        for name in self.names:
            if name not in PROJECTIONS:
                near = settings.did_you_mean(name, PROJECTIONS)
                raise errors.ConfigError(
                    "JI-LORA-001",
                    f"targets={self.targets!r}: {name!r} is no projection{near}; all: {','.join(PROJECTIONS)}",
                )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.targets.replace(" ", "").split(","))

    @property
    def scale(self) -> float:
        """What the product of the adapters is multiplied by."""
        return (self.alpha or 2 * self.rank) / (self.rank**0.5 if self.rslora else self.rank)

    def on(self, name: str) -> LoraConfig | None:
        """These settings if the projection of this name gets adapters, else None."""
        return self if self.rank and name in self.names else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Architecture of one decoder. Saved as JSON beside every checkpoint."""

    vocab_size: int = (
        0  # rows of the embedding; 0 = the tokenizer's, rounded up to a multiple of 64
    )
    hidden_size: int = 256  # model width D
    num_layers: int = 6
    num_heads: int = 4  # query heads N
    num_kv_heads: int = (
        4  # key/value heads K; N is a multiple of K (grouped heads, arXiv 2305.13245)
    )
    head_dim: int = 64  # H
    mlp_size: int = 688  # hidden width of the feed-forward part
    max_positions: int = 4096  # longest sequence the model is meant for
    tie_embeddings: bool = True  # the output head is the embedding, transposed
    heads: str = (
        "language"  # language | score (a reward model or critic) | both (a policy with its critic)
    )
    embed_scale: bool = False  # multiply embeddings by sqrt(D) (Gemma)
    norm: str = "rms"  # rms | layer (GPT-NeoX)
    norm_epsilon: float = 1e-5
    norm_plus_one: bool = False  # scale is stored as (scale - 1) (Gemma)
    post_norms: bool = False  # norms after attention and feed-forward too (Gemma 2, 3)
    qk_norm: bool = False  # RMSNorm on each query and key head (Qwen 3, Gemma 3)
    parallel_residual: bool = False  # attention and feed-forward read the same input (GPT-NeoX)
    activation: str = "silu"  # silu | gelu | gelu_tanh
    gated_mlp: bool = True  # act(gate) * up (SwiGLU, arXiv 2002.05202)
    qkv_bias: bool = False  # bias on query, key, value (Qwen 2, GPT-NeoX)
    out_bias: bool = False  # bias on the attention output (GPT-NeoX)
    mlp_bias: bool = False  # biases of the feed-forward part (GPT-NeoX)
    query_scale: float = 0.0  # multiply scores by this; 0 = head_dim ** -0.5
    attention_softcap: float = 0.0  # cap * tanh(scores / cap); 0 = off (Gemma 2)
    logit_softcap: float = 0.0  # the same for the output logits (Gemma 2)
    rope_theta: float = 10_000.0
    rope_local_theta: float = 0.0  # theta of local layers; 0 = the same (Gemma 3)
    rope_scaling: str = ""  # "" | linear | llama3
    rope_factor: float = 1.0  # of linear and llama3 scaling
    rope_low_frequency: float = 1.0  # llama3: low_freq_factor
    rope_high_frequency: float = 4.0  # llama3: high_freq_factor
    rope_original_positions: int = 8192  # llama3: original_max_position_embeddings
    rotary_share: float = 1.0  # share of each head that is rotated (GPT-NeoX: 0.25)
    window: int = 0  # places a local layer looks back, itself included; 0 = all
    layer_pattern: str = "global"  # e.g. "local,global", repeated over the layers
    scan_layers: bool = True  # one compiled block for all layers; False unrolls (same parameters)
    remat: str = "none"  # a name of REMAT: what the backward pass computes again
    # auto (splash on TPU where it can, else blocked) | xla (reference) | blocked (skips what is masked) | splash |
    # triton (CUDA GPUs; to be compared by `jinstr bench WHAT=attention`)
    attention: str = "auto"
    compute_dtype: str = "auto"  # auto = bfloat16 on accelerators, float32 on CPU
    param_dtype: str = "float32"
    lora: LoraConfig = (
        LoraConfig()
    )  # adapters while they are apart from the kernels; not in model.json

    def __post_init__(self):
        choices = {
            "norm": ("rms", "layer"),
            "activation": ("silu", "gelu", "gelu_tanh"),
            "rope_scaling": ("", "linear", "llama3"),
            "remat": tuple(REMAT),
            "attention": ("auto", "xla", "blocked", "splash", "triton"),
            "heads": ("language", "score", "both"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise errors.ConfigError(
                    "JI-MODEL-001",
                    f"DecoderConfig.{field} = {getattr(self, field)!r}; allowed: {allowed}",
                )
        if self.num_heads % self.num_kv_heads:
            raise errors.ConfigError(
                "JI-MODEL-002",
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}",
            )
        for kind in self.layer_pattern.split(","):
            if kind not in ("global", "local"):
                raise errors.ConfigError(
                    "JI-MODEL-003", f"layer_pattern {self.layer_pattern!r}: only global and local"
                )

        if self.attention in ("splash", "triton") and any(self.local_layers):
            raise errors.ConfigError(
                "JI-MODEL-009",
                f"attention = {self.attention!r} knows no window, but this model has local layers; take 'blocked'",
            )

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """For each layer: does it look back over `window` only?"""
        pattern = self.layer_pattern.split(",")
        return tuple(
            pattern[i % len(pattern)] == "local" and self.window > 0 for i in range(self.num_layers)
        )

    def to_json(self) -> str:
        values = dataclasses.asdict(self)
        del values["lora"]  # of a run, which keeps it in lora.json; the model is the same without
        return json.dumps(values, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "model.json") -> DecoderConfig:
        """Read what `to_json` wrote. Errors: ConfigError unless it holds fields of this version, each of its type."""
        try:
            values = json.loads(text)
            values = dict(values.items())
        except (ValueError, AttributeError, RecursionError) as error:
            raise errors.ConfigError(
                "JI-MODEL-006", f"{where} does not describe a model ({error})"
            ) from None
        types_by_name = settings.types_of(cls)
        for name, value in values.items():
            if name not in types_by_name:
                near = settings.did_you_mean(name, types_by_name)
                raise errors.ConfigError("JI-MODEL-004", f"{where}: {name} is not known{near}")
            wanted = types_by_name[name]
            if not settings.matches(value, wanted):
                raise errors.ConfigError(
                    "JI-MODEL-007", f"{where}: {name} = {value!r}, but it is {wanted.__name__}"
                )
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """Fields of DecoderConfig that are not of the model itself: how it is computed (which changes no result but by
    rounding), and the adapters that a run trains on it."""

    scan_layers: bool = True  # one compiled block for all layers; False unrolls
    remat: str = "none"  # none | minimal | dots | attention | full | offload
    attention: str = "auto"  # auto | xla | blocked | splash (TPU) | triton (GPU)
    compute_dtype: str = "auto"  # auto | bfloat16 | float32
    lora: LoraConfig = LoraConfig()  # what is trained in place of the model, if anything


EXECUTION = tuple(field.name for field in dataclasses.fields(ExecutionConfig))


def executed(config: DecoderConfig, how: DecoderConfig | ExecutionConfig) -> DecoderConfig:
    """The model of `config`, computed as `how` says (and kept in its type of parameters, where it names one)."""
    names = (*EXECUTION, "param_dtype") if isinstance(how, DecoderConfig) else EXECUTION
    return dataclasses.replace(config, **{name: getattr(how, name) for name in names})


def rows_for(pieces: int) -> int:
    """Rows of an embedding for so many pieces: the next multiple of 64, which meshes and matrix units divide."""
    return -(-pieces // 64) * 64


def with_vocabulary(config: DecoderConfig, vocab_size: int) -> DecoderConfig:
    """The config with rows for a tokenizer's pieces. Errors: ConfigError when it has too few."""
    if config.vocab_size == 0:
        return dataclasses.replace(config, vocab_size=rows_for(vocab_size))
    if config.vocab_size < vocab_size:
        raise errors.ConfigError(
            "JI-MODEL-005",
            f"DecoderConfig.vocab_size = {config.vocab_size}, but the tokenizer has {vocab_size} pieces; "
            "set 0 to take the tokenizer's",
        )
    return config
