"""Memory and time of reading and writing a Hugging Face checkpoint: `python tests/benchmarks/hf_memory.py FOLDER`.

Makes a random one of 7B shape in bfloat16 in FOLDER (13.5 GB; --layers 4 makes a small one), reads it in bfloat16 and
writes it again, each in a process of its own, while another thread looks at RssAnon: memory that is no file's. Bound:
the weights and 4 GiB. The bits of what is written are held against what was read.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import time

WATCH = """
import threading, time
peak = [0]
def watch():
    while True:
        with open("/proc/self/status") as file:
            peak[0] = max(peak[0], next(int(l.split()[1]) for l in file if l.startswith("RssAnon")))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
import jax, json, sys
from jinstr.models import decoder, hf_read, hf_write
def read(folder):
    checkpoint = hf_read.open_checkpoint(folder)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "bfloat16", sharding=place),
        decoder.abstract_params(checkpoint.config),
    )
    return checkpoint.config, jax.block_until_ready(hf_read.load_params(checkpoint, abstract))
jax.devices()
before = peak[0]
start = time.monotonic()
config, params = read(sys.argv[1])
read_seconds, read_peak = time.monotonic() - start, peak[0]
start = time.monotonic()
hf_write.save(sys.argv[2], config, params, dtype="bfloat16")
print(json.dumps({
    "weights_gib": sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**30,
    "read_seconds": read_seconds, "read_peak_gib": read_peak / 2**20,
    "write_seconds": time.monotonic() - start, "write_peak_gib": peak[0] / 2**20, "start_gib": before / 2**20,
}))
"""


def make(folder: pathlib.Path, layers: int) -> None:
    """Random weights, shard by shard, by what a checkpoint of this shape holds."""
    import ml_dtypes
    import numpy as np

    from jinstr.models import config as config_lib
    from jinstr.models import hf_config, hf_layout, hf_write

    config = config_lib.DecoderConfig(
        vocab_size=32_000, hidden_size=4096, num_layers=layers, num_heads=32, num_kv_heads=32,
        head_dim=128, mlp_size=11_008, tie_embeddings=False,
    )  # fmt: skip
    folder.mkdir(parents=True)
    writer = hf_write.Writer(folder, 2_000_000_000)
    random = np.random.default_rng(0)
    block = (random.standard_normal(1 << 22) * 0.02).astype(ml_dtypes.bfloat16)
    for number, (name, shape) in enumerate(hf_layout.shapes_there(config).items()):
        # One block of noise, turned by another amount for each tensor: no two are alike.
        writer.add(name, np.resize(np.roll(block, 977 * number), shape))
    writer.close()
    values = hf_config.to_hf(config, torch_dtype="bfloat16")
    (folder / "config.json").write_text(json.dumps(values), "utf-8")


def same_bits(one: pathlib.Path, other: pathlib.Path) -> bool:
    import safetensors

    from jinstr.models import hf_read

    first, second = hf_read.open_checkpoint(one).files, hf_read.open_checkpoint(other).files
    for name in first:
        with safetensors.safe_open(first[name], "numpy") as a:
            left = a.get_tensor(name)
        with safetensors.safe_open(second[name], "numpy") as b:
            if left.tobytes() != b.get_tensor(name).tobytes():
                return False
    return first.keys() == second.keys()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    source, copy = arguments.folder / "made", arguments.folder / "written"
    if not source.exists():
        start = time.monotonic()
        make(source, arguments.layers)
        print(f"made in {time.monotonic() - start:.0f} s")
    shutil.rmtree(copy, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(source), str(copy)], stdout=subprocess.PIPE, check=True
    )
    facts = json.loads(done.stdout)
    bound = facts["weights_gib"] + 4
    for name, value in facts.items():
        print(f"{name:<16} {value:8.2f}")
    print(f"bound            {bound:8.2f} GiB; read {facts['read_peak_gib'] / bound:.2f} of it, "
          f"written {facts['write_peak_gib'] / bound:.2f}")  # fmt: skip
    print(f"the same bits: {same_bits(source, copy)}")


if __name__ == "__main__":
    main()
