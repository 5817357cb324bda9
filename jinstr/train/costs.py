"""What a training step takes, by formula: bytes on each device, FLOPs, bytes on the wires.

D width, F width of the feed-forward part, V vocabulary, L layers, N query and K key/value heads, H head size, P places
of a batch on one device (rows and sequence split, width not).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jinstr.losses import lm
from jinstr.models import config as config_lib
from jinstr.models import splash
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import flops
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

FIELDS = {
    "tokens": jnp.int32,
    "targets": jnp.int32,
    "loss_weights": jnp.float32,
    "positions": jnp.int32,
    "segment_ids": jnp.int32,
}


BETWEEN = "gradients, between slices"


class Shape(NamedTuple):
    """A step: the batch, and how it is cut."""

    rows: int  # of the whole batch
    seq_len: int
    microbatches: int
    mesh: dict[str, int]  # devices along each axis
    slices: int = 1  # that `data` is laid over

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def row_devices(self) -> int:
        return self.mesh["data"] * self.mesh["fsdp"]

    @property
    def places(self) -> int:
        """P of one microbatch."""
        rows = -(-self.rows // self.microbatches // self.row_devices)
        return max(1, rows) * self.seq_len // self.mesh["context"]


def batch_of(shape: Shape, mesh, rules: mesh_lib.AxisRules) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of a step without its values."""
    sharding = mesh_lib.batch_sharding(mesh, rules)
    size = (shape.rows, shape.seq_len)
    return {
        name: jax.ShapeDtypeStruct(size, dtype, sharding=sharding) for name, dtype in FIELDS.items()
    }


def arguments(abstract: dict, frozen: dict, batch: dict) -> dict[str, int]:
    """Bytes on each device of what a step is given, by part."""
    parts = {
        "parameters": abstract["params"],
        "optimizer": abstract["opt_state"],
        "average of parameters": abstract.get("ema", {}),
        "base, not trained": frozen,
        "batch": batch,
    }
    return {name: tree_bytes(tree) for name, tree in parts.items() if jax.tree.leaves(tree)}


def tree_bytes(tree, host: bool = False) -> int:
    """Bytes on one device of abstract arrays with shardings; or of those that wait for it on its host."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if (leaf.sharding.memory_kind == "pinned_host") == host
    )


def temporaries(model: config_lib.DecoderConfig, shape: Shape, parameters: int) -> dict[str, int]:
    """Bytes on each device while a step runs: estimates, by part. parameters: bytes of them on a device."""
    c, t, width = model, shape.mesh["tensor"], jnp.dtype(model.compute_dtype).itemsize
    P, D, F = shape.places, c.hidden_size, c.mlp_size // t
    heads, kv = c.num_heads * c.head_dim // t, c.num_kv_heads * c.head_dim // t
    gate = 2 if c.gated_mlp else 1
    # What products of attention and of the feed-forward part make; of the last one the backward pass needs nothing.
    attention, mlp = heads + 2 * kv + D, gate * F
    kept = {
        "none": 6 * D + 2 * (heads + 2 * kv) + heads + (2 * gate + 1) * F,
        "minimal": D + attention + heads + mlp,
        "dots": D + attention + mlp,
        "attention": D + attention + heads,
        "full": D,
        "offload": 0,
    }[c.remat]
    layer = (flops.matmul_weights(c) - D * _vocabulary(c)) // c.num_layers // t
    # Backward pass of the feed-forward part, the dearest place: its hidden arrays and their gradients, the layer's
    # arrays that were computed again, its kernels.
    again = {"none": 0, "minimal": 4 * D, "attention": mlp + 4 * D, "offload": mlp + 4 * D}.get(
        c.remat, attention + mlp + 5 * D
    )
    working = P * ((2 * gate + 1) * F + 4 * D + again) * width + layer * width
    head = D * _vocabulary(c) // t
    logits = min(P * _vocabulary(c) // t * 4, lm.CHUNK_BYTES) * 2
    head_working = logits + head * (width + 4) + P * D * 2 * width
    return {
        "activations that are kept": c.num_layers * P * kept * width,
        "gradients": parameters * (2 if shape.microbatches > 1 else 1),
        "parameters in the compute type": parameters * width // 4,
        "the dearest layer" if working > head_working else "the output head": max(
            working, head_working
        ),
    }


def _vocabulary(c: config_lib.DecoderConfig) -> int:
    return 1 if c.heads == "score" else c.vocab_size


class Work(NamedTuple):
    """Of one step on one device: FLOPs, and bytes to its host and back."""

    model: float  # by the definition of train.flops, for utilisation
    products: float  # that are carried out outside attention, computing again included
    attention: float  # that are carried out in attention, in blocks that are not all masked
    host: float = 0.0  # bytes, under remat offload


def work(model: config_lib.DecoderConfig, shape: Shape) -> Work:
    """FLOPs of a step on rows of one text each, which is the dearest packing."""
    c, places = model, shape.rows * shape.seq_len
    head = c.hidden_size * _vocabulary(c)
    layers = flops.matmul_weights(c) - head
    passes = 4.0 if c.lora.rank else 6.0
    down = (
        c.num_layers * c.hidden_size * c.mlp_size
    )  # its product is not needed in the backward pass
    mlp = down * (2 if c.gated_mlp else 1)
    again = {"full": layers - down, "attention": mlp, "offload": mlp}.get(c.remat, 0)
    products = places * (passes * layers + 2.0 * again + passes * head)
    block = min(splash.BLOCKS[0], shape.seq_len)
    seen = (shape.seq_len + block) / 2  # places that a place meets, in whole blocks
    once = 4.0 * c.num_layers * c.num_heads * c.head_dim * places * seen
    # Two products forward, five backward; forward twice where it is computed again.
    attention = once * (3.5 + (c.remat in ("dots", "full")))
    total = flops.train_flops(c, places, places * shape.seq_len)
    n = shape.devices
    return Work(total / n, products / n, attention / n, _host_bytes(c, shape))


def _host_bytes(model: config_lib.DecoderConfig, shape: Shape) -> float:
    """What remat offload moves to the host and back."""
    if model.remat != "offload":
        return 0.0
    kept = temporaries(dataclasses.replace(model, remat="attention"), shape, 0)
    return 2.0 * shape.microbatches * kept["activations that are kept"]


def wires(model: config_lib.DecoderConfig, shape: Shape) -> dict[str, float]:
    """Bytes that cross the links of one device in a step, as few as this way of sharding can do with.

    FSDP: kernels of layers gathered forward and backward, those of the head once, in the compute type; gradients added
    up once, by all-reduce in rings: within a slice, then each device its part with those of the other slices. Tensor:
    activations added up twice a layer and pass. Context: keys and values gathered, their gradients added up. Embedding:
    by table or by what is looked up, whichever is less.
    """
    c, m, width = model, shape.mesh, jnp.dtype(model.compute_dtype).itemsize
    D, V = c.hidden_size, _vocabulary(c)
    layers = (flops.matmul_weights(c) - D * V) / m["tensor"] * width
    head = D * V / m["tensor"] * width
    found: dict[str, float] = {}
    ring = {axis: (m[axis] - 1) / m[axis] for axis in m}
    n = shape.microbatches
    trained = 0.0 if c.lora.rank else 1.0
    if m["fsdp"] > 1:
        found["kernels, gathered"] = n * ring["fsdp"] * (2 * layers + head)
    inside = shape.row_devices // shape.slices
    if shape.slices > 1:
        # The embedding's by what was looked up is kept in float32 by the TPU compiler, and a tied head's apart from it.
        sent = (layers + head + c.vocab_size * D / m["tensor"] * 4) / inside
        found[BETWEEN] = trained * n * 2 * (shape.slices - 1) / shape.slices * sent
    if inside > 1:
        rows = (inside - 1) / inside
        found["gradients, added up"] = trained * n * 2 * rows * (layers + head)
        if m["fsdp"] > 1:
            by_places = 2 * ring["fsdp"] * shape.places * D * width
            by_table = (1 + 2) * ring["fsdp"] * c.vocab_size * D * width
            found["embedding"] = n * min(by_places, by_table)
        else:
            found["embedding"] = trained * n * 2 * rows * c.vocab_size * D * width
    activations = shape.places * D * width
    if m["tensor"] > 1:
        passes = 6 if c.remat == "full" else 4
        found["activations, added up"] = (
            n * c.num_layers * passes * 2 * ring["tensor"] * activations
        )
    if m["context"] > 1:
        keys = 2 * shape.places * m["context"] * c.num_kv_heads * c.head_dim // m["tensor"] * width
        again = 1 + (c.remat != "none")
        found["keys and values"] = n * c.num_layers * ring["context"] * keys * (again + 2)
    return found


def abstract_state(model, optimizer, mesh, rules: mesh_lib.AxisRules, ema: bool):
    """(state, frozen base) without values, and the transformation that the state belongs to."""
    transform = optimizer_lib.make_optimizer(optimizer, 1000)
    abstract = state_lib.abstract_state(model, transform, mesh, rules, ema, optimizer.moments)
    return abstract, state_lib.abstract_frozen(model, mesh, rules), transform
