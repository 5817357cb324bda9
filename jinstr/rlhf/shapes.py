"""Shapes of all that a run of PPO or GRPO holds, from its settings: arrays with shardings but without values.

Answers are taken to be as long as is allowed, which is the dearest case.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from jinstr import errors
from jinstr.decode import step as step_lib
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora, splash
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import experience, objectives, practice, reward_parts
from jinstr.rlhf import rollout as rollout_lib
from jinstr.rlhf import rows as rows_lib
from jinstr.train import base as base_lib
from jinstr.train import costs
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

KINDS = ("ppo", "grpo")
STOPS, PAD = (1,), 0  # which tokens these are changes no size


@dataclasses.dataclass(frozen=True, kw_only=True)
class PracticeShape:
    """The settings of a recipe of ppo or grpo that sizes depend on, by their names there."""

    prompt_length: int  # tokens of the longest prompt
    max_new_tokens: int
    rollout_rows: int
    rollout_chunk: int
    prompts: int  # questions of an iteration
    answers: (
        int | str
    )  # to each; a word in recipes of pretrain and sft, where it says another thing
    minibatches: int
    microbatches: int
    critic: str  # shared | policy | RUN_DIR; of ppo
    reward: str  # as in ppo and grpo; "" = a reward model of the policy's shape
    kl_reward: float
    kl_loss: float
    text_coefficient: float
    text_seq_len: int
    text_batch_tokens: int

    def rollout(self) -> rollout_lib.RolloutConfig:
        return rollout_lib.RolloutConfig(
            max_new_tokens=self.max_new_tokens, rows=self.rollout_rows, chunk=self.rollout_chunk
        )

    def practice(self) -> practice.PracticeConfig:
        if not isinstance(self.answers, int):
            raise errors.ConfigError(
                "JI-PLAN-010", f"ANSWERS={self.answers!r}: of ppo and grpo it is a number"
            )
        return practice.PracticeConfig(
            iterations=1, prompts=self.prompts, answers=self.answers, minibatches=self.minibatches,
            microbatches=self.microbatches, kl_reward=self.kl_reward,
        )  # fmt: skip


class Models(NamedTuple):
    """Shapes of all models of a run, as they are computed there, but for their attention."""

    policy: config_lib.DecoderConfig  # heads "both" with a shared critic
    critic: config_lib.DecoderConfig | None  # of its own
    rewards: tuple[config_lib.DecoderConfig, ...]


def models_of(kind: str, model: config_lib.DecoderConfig, shape: PracticeShape) -> Models:
    """Of a policy. Errors: ConfigError, StorageError for a CRITIC or REWARD that is not there."""
    plain = lora.plain(model)

    def scoring(name: str) -> config_lib.DecoderConfig:
        own = plain if name == "policy" else base_lib.open_base(name).config
        return dataclasses.replace(config_lib.executed(own, plain), heads="score")

    is_ppo = kind == "ppo"
    is_shared = is_ppo and shape.critic == "shared"
    policy = dataclasses.replace(model, heads="both" if is_shared else "language")
    critic = scoring(shape.critic) if is_ppo and not is_shared else None
    names = ["policy"]
    if shape.reward:
        parts = reward_parts.read(shape.reward, "module")  # which module is nothing to a size
        names = [part.text for part in parts if part.kind == "model"]
    return Models(policy, critic, tuple(map(scoring, names)))


class Place(NamedTuple):
    """Where, and how arrays lie there."""

    mesh: jax.sharding.Mesh
    rules: mesh_lib.AxisRules

    @property
    def row_devices(self) -> int:
        return mesh_lib.devices_along(self.mesh, self.rules.batch)

    def put(self, tree, *names: str | None):
        """Abstract arrays with the sharding of these logical axes, whole without any."""
        sharding = NamedSharding(self.mesh, self.rules.spec(*names))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )


def attending(model: config_lib.DecoderConfig, place: Place, length: int):
    """The model with the attention that rows of this length have there."""
    if model.attention != "auto":
        return model
    is_tpu = place.mesh.devices.flat[0].platform == "tpu"
    whole = mesh_lib.devices_along(place.mesh, place.rules.sequence) == 1
    can = is_tpu and whole and length % splash.BLOCKS[-1] == 0 and not any(model.local_layers)
    return dataclasses.replace(model, attention="splash" if can else "blocked")


def batch_of(
    kind: str, shape: PracticeShape, place: Place
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, jax.ShapeDtypeStruct]]:
    """(rows of the passes that read, those of an update), of an iteration whose answers are all as long as allowed."""
    config = shape.practice()
    count = config.prompts * config.answers
    prompt = np.zeros(shape.prompt_length, np.int32)
    answer = np.zeros(shape.max_new_tokens, np.int32)
    episodes = [experience.Episode(prompt, answer)] * count
    mask = experience.answer_mask(episodes, shape.max_new_tokens)
    nothing = np.zeros(mask.shape, np.float32)
    written = practice.Written([], episodes, [], nothing, np.zeros(count, bool), mask, 0.0)
    rows = practice.minibatches(
        written, range(count), config, (0,), longest_prompt=shape.prompt_length, pad_id=PAD,
        devices=place.row_devices,
    )[0]  # fmt: skip
    names = ("old_logp", "reference_logp", "advantages", "weights", "token_weights")
    names += ("old_values", "returns") if kind == "ppo" else ()
    whole = practice.batch_of(rows, mask, dict.fromkeys(names, nothing))
    read, update = (place.put(batch, "batch", "sequence") for batch in (rows.batch, whole))
    return read, update


def text_of(shape: PracticeShape, place: Place) -> dict[str, jax.ShapeDtypeStruct]:
    """The rows of PPO-ptx; {} without."""
    if not shape.text_coefficient:
        return {}
    size = (shape.text_batch_tokens // shape.text_seq_len, shape.text_seq_len)
    fields = {
        f"{objectives.TEXT}{name}": jax.ShapeDtypeStruct(size, dtype)
        for name, dtype in costs.FIELDS.items()
    }
    return place.put(fields, "batch", "sequence")


def state_of(model, optimizer, place: Place) -> tuple:
    """(transformation, abstract state) of a model that is trained."""
    transform = optimizer_lib.make_optimizer(optimizer, 1000)
    ema = optimizer.ema_decay > 0
    return transform, state_lib.abstract_state(
        model, transform, *place, ema=ema, moments=optimizer.moments
    )


def _narrow(model: config_lib.DecoderConfig, place: Place) -> dict:
    """Parameters that are only read, in their narrower type."""
    dtype = state_lib.frozen_dtype(model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        decoder.abstract_params(model),
        decoder.param_shardings(model, *place),
    )


def kept_of(kind: str, models: Models, shape: PracticeShape, optimizer, place: Place) -> dict:
    """What is there all the time, abstract arrays by part."""
    model = models.policy
    _, state = state_of(model, optimizer, place)
    parts = {"policy": state["params"], "its optimizer": state["opt_state"]}
    if "ema" in state:
        parts["its average"] = state["ema"]
    if model.lora.rank:
        parts["its base, not trained"] = state_lib.abstract_frozen(model, *place)
    elif kind == "ppo" or shape.kl_reward or shape.kl_loss:
        parts["reference"] = _narrow(model, place)
    if models.critic:
        _, state = state_of(models.critic, optimizer, place)
        parts |= {"critic": state["params"], "optimizer of the critic": state["opt_state"]}
    return parts | {name: _narrow(judge, place) for name, judge in judges(models).items()}


def judges(models: Models) -> dict[str, config_lib.DecoderConfig]:
    """The reward models by names that no two share."""
    names = ("reward model", *(f"reward model {n}" for n in range(2, 100)))
    return dict(zip(names, models.rewards))


def lent_of(models: Models, shape: PracticeShape, place: Place) -> dict:
    """What is there while answers are written: the copy that writes, and the rows with their cache."""
    fixed, sizes = rollout_of(models, shape, place)
    whole = mesh_lib.abstract(dict(place.mesh.shape))
    with jax.sharding.use_abstract_mesh(whole):
        copy = jax.eval_shape(
            lambda params: step_lib.serving_params(fixed.config, params, place.rules),
            decoder.abstract_params(fixed.config),
        )
        specs = step_lib.serving_specs(fixed.config, place.rules)
        state = jax.eval_shape(lambda: rows_lib.empty(fixed, sizes.rows, sizes.slots))

    def lies(leaf, spec):
        sharding = NamedSharding(place.mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(lambda x: lies(x, rows_lib.row_spec(place.rules, x.ndim)), state)
    cache = state.pop("cache")
    return {"copy that writes": jax.tree.map(lies, copy, specs), "cache": cache, "rows": state}


def rollout_of(models: Models, shape: PracticeShape, place: Place):
    """(what programs of a rollout depend on, their shapes)."""
    config = shape.rollout()
    sampler = rollout_lib.sampler_of(models.policy, config, STOPS, PAD)
    count = shape.prompts * shape.answers
    sizes = rollout_lib.shapes_of(config, shape.prompt_length, count, place.row_devices)
    return rollout_lib.fixed_of(sampler, config, place.rules), sizes
