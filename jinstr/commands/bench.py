"""`jinstr bench`: speed of training steps, decoding, attention and data, as ratios measured in one process."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jinstr import errors
from jinstr.data import loader as loader_lib
from jinstr.data import prepared as prepared_lib
from jinstr.decode import sampler as sampler_lib
from jinstr.models import attention, decoder
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import flops
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

READ_SECONDS = 2.0  # at least, of reading batches


def bench(
    *,
    what: str,
    model: config_lib.DecoderConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    seq_len: int,
    batch_rows: int,
    steps: int,
    batches: tuple[int, ...],
    prompt_tokens: int,
    new_tokens: int,
    attention_shapes: tuple[tuple[int, int, int], ...],
    data: str,
) -> dict:
    """Measure and print; returns the figures.

    what: train | decode | attention | data. train: model FLOP/s (facts in train.flops) of a step on random tokens over
    the matrix product ceiling, measured before every step. decode: tokens per second of greedy decoding for each batch
    size in `batches`. attention: every implementation that this machine has, forward and with the backward pass, for
    each (rows, places, query heads) in `attention_shapes`, over the ceiling and over the reference, in turns. data:
    tokens per second of reading the prepared set in folder `data`, without a model.
    """
    if what == "train":
        return _train(model, optimizer, mesh_lib.make_mesh(mesh), rules, seq_len, batch_rows, steps)
    if what == "decode":
        return _decode(model, batches, prompt_tokens, new_tokens, steps)
    if what == "attention":
        return _attention(model, attention_shapes, steps)
    if what == "data":
        return _data(data, seq_len, batch_rows, steps)
    raise errors.ConfigError(
        "JI-BENCH-001", f"WHAT={what!r}; allowed: train, decode, attention, data"
    )


def _quartiles(values: list[float]) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:.4g} (quartiles {low:.4g} to {high:.4g})"


def random_batch(vocab_size: int, rows: int, seq_len: int) -> dict[str, np.ndarray]:
    """One segment of random tokens a row, i32 and f32 [rows, seq_len]."""
    draw = np.random.default_rng(0)
    shape = (rows, seq_len)
    return {
        "tokens": draw.integers(0, vocab_size, shape, np.int32),
        "targets": draw.integers(0, vocab_size, shape, np.int32),
        "loss_weights": np.ones(shape, np.float32),
        "positions": np.tile(np.arange(seq_len, dtype=np.int32), (rows, 1)),
        "segment_ids": np.ones(shape, np.int32),
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds until the result of a call is there."""
    before = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - before


def _train(model, optimizer, mesh, rules, seq_len: int, batch_rows: int, steps: int) -> dict:
    transform = optimizer_lib.make_optimizer(optimizer, 1000)
    abstract = state_lib.abstract_state(
        model, transform, mesh, rules, ema=False, moments=optimizer.moments
    )
    state = state_lib.init_state(model, transform, abstract, 0)
    step = state_lib.make_step(model, optimizer, transform, mesh, rules, abstract)
    batch = state_lib.place_batch(random_batch(model.vocab_size, batch_rows, seq_len), mesh, rules)
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    work = flops.train_flops(model, batch_rows * seq_len, batch_rows * seq_len**2)
    rates, ceilings, ratios = [], [], []
    for _ in range(steps):
        ceiling = flops.matmul_ceiling(decoder.compute_dtype(model), tries=3) * jax.device_count()
        before = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        rates.append(work / (time.perf_counter() - before))
        ceilings.append(ceiling)
        ratios.append(rates[-1] / ceiling)
    print(f"{decoder.count_params(model):,} parameters, {batch_rows} rows of {seq_len} tokens")
    print(f"matrix product ceiling, GFLOP/s: {_quartiles([c / 1e9 for c in ceilings])}")
    print(f"training step, GFLOP/s:          {_quartiles([r / 1e9 for r in rates])}")
    print(f"share of the ceiling:            {_quartiles(ratios)}")
    tokens = batch_rows * seq_len * float(np.median(rates)) / work
    print(f"tokens per second:               {tokens:,.0f}")
    return {
        "ratio": float(np.median(ratios)),
        "ratio_of_medians": float(np.median(rates) / np.median(ceilings)),
        "flops_per_second": float(np.median(rates)),
        "tokens_per_second": tokens,
    }


def _decode(model, batches, prompt_tokens: int, new_tokens: int, tries: int) -> dict:
    params = decoder.init_params(model, jax.random.key(0))
    sampling = sampler_lib.SamplingConfig(temperature=0.0, max_new_tokens=new_tokens)
    # No stop ids: every row writes all of its tokens.
    sampler = sampler_lib.Sampler(model, sampling, (), 0)
    serving = sampler.serve(params)
    found = {}
    for rows in batches:
        prompts = np.random.default_rng(0).integers(0, model.vocab_size, (rows, prompt_tokens))
        arguments = (
            params,
            prompts.astype(np.int32),
            np.full(rows, prompt_tokens),
            np.arange(rows),
        )

        def run(arguments=arguments):
            decoding = sampler.start(*arguments, jax.random.key(0), serving)
            decoding.advance(new_tokens)
            return decoding.rollout().ids

        run()
        seconds = [timed(run) for _ in range(max(3, tries))]
        rate = rows * new_tokens / float(np.median(seconds))
        # Bound: every weight is read once for each token of all rows.
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(serving))
        traffic = weights * new_tokens / float(np.median(seconds)) / 1e9
        found[str(rows)] = rate
        print(f"batch {rows:3}: {rate:9,.0f} tokens/s, weights read at {traffic:.2f} GB/s")
    return found


def _attention(model, shapes: tuple[tuple[int, int, int], ...], rounds: int) -> dict:
    found = {}
    for rows, places, heads in shapes:
        kv_heads, rest = divmod(heads * model.num_kv_heads, model.num_heads)
        if rest or not kv_heads:
            raise errors.ConfigError(
                "JI-BENCH-002",
                f"ATTENTION_SHAPES: {heads} query heads do not go into groups of "
                f"{model.num_heads // model.num_kv_heads}, as those of the model",
            )
        name = f"{rows} rows of {places} places, {heads} heads ({kv_heads} of keys) of {model.head_dim}"
        print(name)
        found[name] = _attention_of(model, rows, places, heads, kv_heads, max(3, rounds))
    return found


def attention_calls(model, rows: int, places: int, heads: int, kv_heads: int) -> dict[str, tuple]:
    """Implementation → (forward, forward and backward), compiled, on random values in rows of one text."""
    dtype = decoder.compute_dtype(model)
    draw = np.random.default_rng(0)
    sizes = (heads, kv_heads, kv_heads, heads)
    q, k, v, weights = (
        jnp.asarray(draw.normal(size=(rows, places, n, model.head_dim)), dtype) for n in sizes
    )
    positions = jnp.tile(jnp.arange(places), (rows, 1))
    segments = jnp.ones_like(positions)

    def calls(implementation: str) -> tuple[Callable, Callable]:
        def forward(q, k, v):
            return attention.attend(
                q, k, v, positions, positions, segments, segments, scale=model.head_dim**-0.5,
                softcap=model.attention_softcap, implementation=implementation,
            )  # fmt: skip

        both = jax.jit(jax.value_and_grad(lambda *qkv: (forward(*qkv) * weights).sum(), (0, 1, 2)))
        return functools.partial(jax.jit(forward), q, k, v), functools.partial(both, q, k, v)

    return {name: calls(name) for name in attention.here(places)}


def _attention_of(model, rows: int, places: int, heads: int, kv_heads: int, rounds: int) -> dict:
    calls = attention_calls(model, rows, places, heads, kv_heads)
    for pair in calls.values():
        for call in pair:
            timed(call)
    # By the definition of train.flops: what is masked does not count.
    work = 2.0 * heads * model.head_dim * rows * places**2
    seconds = {name: np.empty((rounds, 2)) for name in calls}
    ceilings = np.empty(rounds)
    for i in range(rounds):
        ceilings[i] = flops.matmul_ceiling(decoder.compute_dtype(model), tries=1)
        for name, pair in calls.items():
            seconds[name][i] = [timed(call) for call in pair]
    found = {}
    for name, taken in seconds.items():
        found[name] = {}
        for kind, column, passes in (("forward", 0, 1), ("forward and backward", 1, 3)):
            share = passes * work / taken[:, column] / ceilings
            faster = seconds["xla"][:, column] / taken[:, column]
            found[name][kind] = {
                "seconds": float(np.median(taken[:, column])),
                "share_of_ceiling": float(np.median(share)),
                "times_xla": float(np.median(faster)),
            }
            print(f"    {name}, {kind}: {_quartiles(list(taken[:, column] * 1e3))} ms")
            print(f"        share of the ceiling: {_quartiles(list(share))}")
            print(f"        times as fast as xla: {_quartiles(list(faster))}")
    return found


def _data(data: str, seq_len: int, batch_rows: int, steps: int) -> dict:
    source = prepared_lib.PreparedSource(path=data, name="bench")
    config = loader_lib.LoaderConfig(seq_len=seq_len, batch_rows=batch_rows)
    loader = loader_lib.Loader((source,), config)
    loader.read(0)
    tokens = step = 0
    before = time.perf_counter()
    # Steps are so short that ten of them measure the first touch of the files.
    while step < steps or time.perf_counter() - before < READ_SECONDS:
        step += 1
        tokens += int((loader.read(step)["segment_ids"] > 0).sum())
    rate = tokens / (time.perf_counter() - before)
    print(f"reading: {rate / 1e6:.2f} M tokens/s ({step} steps of {batch_rows} × {seq_len})")
    return {"tokens_per_second": rate}
