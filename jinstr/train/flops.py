"""Counting model FLOPs, tokens per second and utilisation, by one definition.

Per token: 6·N + 6·L·n_heads·head_dim·T_eff, N = weights of matrix products with the output head, without the input
embedding; T_eff = Σ len² / Σ len over the packed segments (causal attention counted once, padding not at all). Under
LoRA 4·N, for no kernel gets a gradient, and 6 times the numbers of the adapters. Recomputation is not counted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import processes, together


def matmul_weights(config: config_lib.DecoderConfig) -> int:
    """Weights that take part in matrix products, output head included."""
    heads = config.num_heads * config.head_dim
    attention = config.hidden_size * (2 * heads + 2 * config.num_kv_heads * config.head_dim)
    mlp = (3 if config.gated_mlp else 2) * config.hidden_size * config.mlp_size
    head = 1 if config.heads == "score" else config.vocab_size
    return config.num_layers * (attention + mlp) + config.hidden_size * head


def train_flops(config: config_lib.DecoderConfig, tokens: float, square: float) -> float:
    """FLOPs of forward and backward over `tokens` places in segments whose squared lengths add up to `square`."""
    attention = config.num_layers * config.num_heads * config.head_dim
    weights = 6.0 * matmul_weights(config)
    if config.lora.rank:
        weights = 4.0 * matmul_weights(config) + 6.0 * lora.count(config)
    return weights * tokens + 6.0 * attention * square


def matmul_ceiling(dtype=jnp.float32, tries: int = 5) -> float:
    """FLOP/s of one square matrix product on random data, median of `tries`, on the default device.

    On CPU the faster of XLA's product and that of numpy's BLAS: XLA's own is not the best that the cores can do.
    """
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192  # large enough that starting the product does not count
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    product = jax.jit(jnp.matmul)
    placed = jnp.asarray(a, dtype)
    product(placed, placed).block_until_ready()
    best = _seconds(lambda: product(placed, placed).block_until_ready(), tries)
    if on_cpu and jnp.dtype(dtype) == jnp.float32:
        best = min(best, _seconds(lambda: np.matmul(a, a), tries))
    return 2 * size**3 / best


def _seconds(call, tries: int) -> float:
    """Median seconds of a call."""
    found = []
    for _ in range(tries):
        before = time.perf_counter()
        call()
        found.append(time.perf_counter() - before)
    return float(np.median(found))


class Meter:
    """Tokens, FLOPs and time between two reads; time in evaluations and saves is left out."""

    def __init__(self, config: config_lib.DecoderConfig, before: Mapping[str, float] | None = None):
        """before: the `totals` of the run up to the checkpoint that it goes on from."""
        self._config = config
        self._ceiling = np.inf
        if not processes.index():  # only the first of several processes tells of it
            self._ceiling = matmul_ceiling(decoder.compute_dtype(config)) * jax.device_count()
        # The others wait here: between CPUs, in a collective that has not begun, they would for 30 s only.
        together.barrier("ceiling")
        before = before or {}
        self.tokens_seen = before.get("tokens", 0.0)
        self.flops = before.get("flops", 0.0)
        self.seconds = before.get("train_seconds", 0.0)  # without evaluations, saves and compiling
        self.start()

    def totals(self) -> dict[str, float]:
        """Over the whole run: tokens, flops, train_seconds."""
        return {"tokens": self.tokens_seen, "flops": self.flops, "train_seconds": self.seconds}

    def start(self) -> None:
        self._tokens = self._flops = self._pause = 0.0
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def paused(self):
        before = time.perf_counter()
        yield
        self._pause += time.perf_counter() - before

    def add(self, metrics: dict[str, float]) -> None:
        """Count one step from its metrics `tokens` and `square` (see train.state.make_step)."""
        flops = train_flops(self._config, metrics["tokens"], metrics["square"])
        self._tokens += metrics["tokens"]
        self._flops += flops
        self.tokens_seen += metrics["tokens"]
        self.flops += flops

    def read(self) -> dict[str, float]:
        """tokens_per_second and mfu (share of the measured matmul ceiling) since the last read."""
        seconds = max(1e-9, time.perf_counter() - self._since - self._pause)
        speed = {
            "tokens_per_second": self._tokens / seconds,
            "mfu": self._flops / seconds / self._ceiling,
        }
        self.seconds += seconds
        self.start()
        return speed
