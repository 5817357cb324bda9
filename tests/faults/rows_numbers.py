"""Rows about numbers: NaN and spikes, a flipped bit in one replica, no memory, a damaged compile cache."""

import random
import shutil

from tests.faults import rig as rig_lib

EIGHT = "--xla_force_host_platform_device_count=8"


def _incidents(folder, kind):
    path = folder / "incidents.jsonl"
    found = rig_lib.lines(path) if path.exists() else []
    return [line for line in found if line["kind"] == kind]


def _nan_gradient(rig, full):
    """A save after every step around it shows that nothing moved."""
    name = rig.fresh("nan")
    ended = rig.train(
        name, "SAVE_EVERY=1", "NUM_STEPS=13", "KEEP=13", faults="nan_gradient@12=here"
    )
    before, there, after = (rig_lib.array_digests(ended.folder, step) for step in (11, 12, 13))
    same = there == before
    moved = after != before  # negative control
    ids = _incidents(ended.folder, "non-finite")
    logged = {
        line["step"]: line["examples"] for line in rig_lib.lines(ended.folder / "examples.jsonl")
    }
    named = [line["step"] for line in ids] == [12] and ids[0]["examples"] == logged[12]
    name = rig.fresh("nan-thrice")
    faults = ",".join(f"nan_gradient@{step}=here" for step in (12, 13, 14))
    thrice = rig.train(name, faults=faults)
    last = max(line["step"] for line in rig_lib.logged(thrice.folder))
    again = rig.train(name)
    exact = again.status == 0 and rig.is_reference(again.folder)
    text = (
        f"bits unchanged: {same} (moved by the next step: {moved}), batch ids written: {named}; three in a row: "
        f"exit {thrice.status}, last step logged {last}; without the fault then exact: {exact}"
    )
    return text, same and moved and named and thrice.status == 70 and last <= 14 and exact


def _nonfinite_on_shards(rig, full):
    """One number of one shard of one gradient on eight devices; an infinite loss; a spike."""
    seen = {}
    for fault in ("nan_gradient", "infinite_loss"):
        name = rig.fresh("sharded")
        words = ["SAVE_EVERY=1", "NUM_STEPS=13", "KEEP=13", "BATCH_TOKENS=1024", "MESH_FSDP=4"]
        ended = rig.train(name, *words, faults=f"{fault}@12=here", XLA_FLAGS=EIGHT)
        steps = [rig_lib.array_digests(ended.folder, step) for step in (11, 12, 13)]
        seen[fault] = steps[0] == steps[1] != steps[2] and ended.status == 0
    name = rig.fresh("spike")
    ended = rig.train(name, faults="spike@40=here")
    spikes = _incidents(ended.folder, "spike")
    told = [line["step"] for line in spikes] == [40] and bool(spikes[0]["examples"])
    name = rig.fresh("skipping")
    skipped = rig.train(name, "SKIP_STEPS=39:41", faults="spike@40=here")
    left_out = [line["step"] for line in _incidents(skipped.folder, "skipped")]
    quiet = not _incidents(skipped.folder, "spike")
    text = f"8 devices, all unchanged: {seen}; spike of 1000 told with ids: {told}; SKIP_STEPS: {left_out}"
    kept = all(seen.values()) and told and left_out == [39, 40, 41] and quiet
    return text, kept and skipped.status == 0


def _nan_in_a_checkpoint(rig, full):
    name = rig.fresh("poisoned")
    # The check of the step is passed by: parameters go bad between two steps, just before a save.
    # MAX_NONFINITE lets it go on for four saves, which must push no healthy one out.
    ended = rig.train(name, "MAX_NONFINITE=20", faults="nan_parameter@30=here")
    steps = rig_lib.steps_of(ended.folder)
    again = rig.train(name, "ALLOW_ROLLBACK=True")
    fallen_back = "going on from step 25" in again.text
    exact = again.status == 0 and rig.is_reference(again.folder)
    text = (
        f"exit {ended.status}, steps kept {steps}; then from step 25: {fallen_back}, exact: {exact}"
    )
    return text, ended.status == 70 and {20, 25} <= set(steps) and fallen_back and exact


def _flipped_replica(rig, full):
    words = ["BATCH_TOKENS=1024", "REPLICA_CHECK_EVERY=10", "SAVE_EVERY=20"]
    reference = rig.train(rig.fresh("eight"), *words, XLA_FLAGS=EIGHT)
    name = rig.fresh("flip")
    ended = rig.train(name, *words, faults="flip_replica@33=here", XLA_FLAGS=EIGHT)
    found = "JI-PEER-001: step 40" in ended.text and "device 7" in ended.text
    again = rig.train(name, *words, XLA_FLAGS=EIGHT)
    exact = again.status == 0 and rig_lib.facts(again.folder) == rig_lib.facts(reference.folder)
    text = f"exit {ended.status}, step 40 and the device named: {found}; then exact: {exact}"
    return text, ended.status == 76 and found and exact


def _out_of_resources(rig, full):
    seen = {}
    name = rig.fresh("memory")
    ended = rig.train(name, "NUM_STEPS=20")
    assert ended.status == 0
    # A batch that does not fit: 4 GB of address space for about 30 GB of activations.
    prefix = ["prlimit", f"--as={4 << 30}"]
    ended = rig.train(
        name,
        "BATCH_TOKENS=1048576",
        "SEQ_LEN=2048",
        "RUN_DIR=" + str(rig.place / "big"),
        prefix=prefix,
    )
    seen["memory"] = (ended.status, "out of memory" in ended.text and "peak" in ended.text)
    ended = rig.train(rig.fresh("files"), prefix=["prlimit", "--nofile=40"])
    seen["file handles"] = (ended.status, "ulimit -n" in ended.text)
    ended = rig.train(name, "NUM_STEPS=60")
    sound = "going on from step 20" in ended.text and ended.status == 0
    return f"{seen}; last checkpoint valid: {sound}", sound and all(
        status == 71 and told for status, told in seen.values()
    )


def _damaged_compile_cache(rig, full):
    assert rig.reference.status == 0
    cache = rig.place / "damaged-cache"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(rig.place / "compiled", cache)
    files = sorted(
        path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 100
    )
    source = random.Random(0)
    for path in files:
        data = bytearray(path.read_bytes())
        for _ in range(8):
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        path.write_bytes(data)
    name = rig.fresh("cache")
    ended = rig.train(name, JAX_COMPILATION_CACHE_DIR=str(cache))
    exact = ended.status == 0 and rig.is_reference(ended.folder)
    return f"{len(files)} entries damaged: exit {ended.status}, exact: {exact}", exact and bool(
        files
    )


ROWS = [
    rig_lib.row("31", "NaN gradient, finite loss", "nothing moves, ids written, exit 70 after 3", _nan_gradient, True),
    rig_lib.row("32", "NaN in one shard, infinite loss, spike", "as 31, on all; spikes told", _nonfinite_on_shards),
    rig_lib.row("33", "NaN reaches a checkpoint", "marked; the last healthy one is taken", _nan_in_a_checkpoint),
    rig_lib.row("34", "a flipped bit in one replica", "found within REPLICA_CHECK_EVERY, exit 76", _flipped_replica),
    rig_lib.row("46", "no memory, no file handles", "exit 71 with the peak; checkpoint valid", _out_of_resources),
    rig_lib.row("47", "damaged compile cache", "compiled anew, exact", _damaged_compile_cache),
]  # fmt: skip
