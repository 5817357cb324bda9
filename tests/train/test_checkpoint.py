"""Checkpoints: what is restored is what was saved, damage is seen, nothing healthy is deleted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jinstr import errors
from jinstr.testing import faults
from jinstr.train import checkpoint, manifests


def tree(seed):
    a, b, c = jax.random.split(jax.random.key(seed), 3)
    return {
        "params": {"w": jax.random.normal(a, (8, 4)), "n": {"b": jax.random.normal(b, (4,))}},
        "opt_state": ({"mu": jax.random.normal(c, (8, 4))}, jnp.int32(seed)),
        "rng": jax.random.key_data(jax.random.key(seed)),
    }


def abstract(arrays):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arrays)


def opened(folder, **settings):
    return checkpoint.Checkpointer(folder, checkpoint.CheckpointConfig(**settings))


@pytest.fixture
def saved(tmp_path):
    """A directory with the steps 10, 20, 30, of which two are kept."""
    keeper = opened(tmp_path, keep=2)
    for step in (10, 20, 30):
        keeper.save(step, tree(step), {"data": {"step": step}})
    keeper.close()
    return tmp_path


def flip(path, offset=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if offset is None else offset] ^= 4
    path.write_bytes(data)


def test_restored_is_saved(saved):
    keeper = opened(saved)
    assert keeper.latest_verified() == 30 and keeper.start_step() == 30
    assert keeper.read_run_json(30)["data"] == {"step": 30}
    found = keeper.restore(30, abstract(tree(30)))
    assert checkpoint.tree_digest(found) == checkpoint.tree_digest(tree(30))
    assert checkpoint.tree_digest(found) != checkpoint.tree_digest(tree(20))
    only = keeper.restore(20, {"params": abstract(tree(20))["params"]})
    assert checkpoint.tree_digest(only["params"]) == checkpoint.tree_digest(tree(20)["params"])
    keeper.close()


def test_old_steps_go_and_the_newest_stay(saved):
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["20", "30"]


def test_every_flipped_bit_is_seen(saved, capsys):
    """Orbax restores flipped array bytes without a word; the manifest does not let them pass."""
    files = [
        p for p in (saved / "checkpoints" / "30").rglob("*") if p.is_file() and p.stat().st_size
    ]
    assert len(files) > 10
    for path in files:
        before = path.read_bytes()
        flip(path)
        keeper = opened(saved)
        assert keeper.latest_verified() == 20, path
        keeper.close()
        path.write_bytes(before)
    assert "is not used" in capsys.readouterr().err
    assert opened(saved).latest_verified() == 30


def test_a_cut_file_and_a_missing_one(saved):
    files = [p for p in (saved / "checkpoints" / "30" / "state").rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    assert opened(saved).latest_verified() == 20
    path.unlink()
    assert opened(saved).latest_verified() == 20
    with pytest.raises(errors.StorageError, match="is missing"):
        opened(saved).restore(30, abstract(tree(30)))


def test_a_save_without_its_manifest_is_no_step(saved):
    (saved / "checkpoints" / "30" / "manifest.json").unlink()
    keeper = opened(saved)
    assert keeper.start_step() == 20
    assert (saved / "checkpoints" / "30.corrupt").is_dir()  # evidence, out of the way
    assert "30" in (saved / "incidents.jsonl").read_text("utf-8")
    keeper.save(30, tree(31), {})
    keeper.close()
    found = opened(saved).restore(30, abstract(tree(31)))
    assert checkpoint.tree_digest(found) == checkpoint.tree_digest(tree(31))


def test_a_used_directory_is_never_started_afresh(saved):
    for step in (20, 30):
        flip(saved / "checkpoints" / str(step) / "run.json")
    with pytest.raises(errors.StorageError, match="no checkpoint under .* verifies"):
        opened(saved).start_step()
    with pytest.raises(errors.StorageError, match="choose another RUN_DIR"):
        opened(saved, resume="never").start_step()


def test_resume_rules(tmp_path):
    assert opened(tmp_path).start_step() == 0
    with pytest.raises(errors.StorageError, match="RESUME=must"):
        opened(tmp_path, resume="must").start_step()
    with pytest.raises(errors.ConfigError, match="allowed: auto, must, never"):
        opened(tmp_path, resume="yes")


def test_other_shapes_are_named(saved):
    wanted = abstract(tree(30))
    wanted["params"]["w"] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
    with pytest.raises(errors.ConfigError, match=r"\['w'\].*\[8, 4\].*\[8, 5\]"):
        opened(saved).restore(30, wanted)
    wanted["params"]["w"] = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
    with pytest.raises(errors.ConfigError, match="bfloat16"):
        opened(saved).restore(30, wanted)


def test_what_a_newer_version_wrote_is_left_alone(saved):
    path = saved / "checkpoints" / "30" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": 99}
    path.write_text(json.dumps(manifest | {"digest": manifests.own_digest(manifest)}))
    with pytest.raises(errors.StorageError, match="format 99.*install a newer one"):
        opened(saved).start_step()
    # Negative control: without the right digest it is damage, not a version.
    path.write_text(json.dumps(manifest))
    assert opened(saved).start_step() == 20


def test_two_damaged_steps_need_a_word(tmp_path):
    keeper = opened(tmp_path, keep=3)
    for step in (10, 20, 30):
        keeper.save(step, tree(step), {})
    keeper.close()
    for step in (20, 30):
        flip(tmp_path / "checkpoints" / str(step) / "run.json")
    with pytest.raises(errors.StorageError, match="newest 2 .*step 30.*ALLOW_ROLLBACK"):
        opened(tmp_path).start_step()
    assert not list((tmp_path / "checkpoints").glob("*.corrupt"))  # untouched until then
    assert opened(tmp_path, allow_rollback=True).start_step() == 10


def test_parameters_that_are_not_finite_are_never_gone_on_from(tmp_path):
    """And they push no healthy step out."""
    keeper = opened(tmp_path, keep=2)
    for step in (10, 20):
        keeper.save(step, tree(step), {})
    for step in (30, 40, 50):
        bad = tree(step)
        bad["params"]["n"]["b"] = bad["params"]["n"]["b"].at[1].set(jnp.nan)
        keeper.save(step, bad, {})
    keeper.close()
    assert opened(tmp_path, allow_rollback=True).start_step() == 20


def test_left_overs_of_a_killed_process_go(saved):
    for name in ("40.saving", "5.deleting"):
        (saved / "checkpoints" / name / "state").mkdir(parents=True)
    assert opened(saved).start_step() == 30
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["20", "30"]


def test_a_failed_save_is_told_and_tried_again(tmp_path, capsys):
    for policy in ("stop", "continue"):
        keeper = opened(tmp_path / policy, on_save_error=policy)
        faults.enable("save_manifest@10=error")
        keeper.save(10, tree(10), {})
        keeper._commit.join()
        faults.enable("")
        if policy == "stop":
            with pytest.raises(errors.StorageError, match="saving step 10 .* failed.*injected"):
                keeper.check()
        else:
            keeper.check()
            assert "save failed at step 10" in capsys.readouterr().err
        assert keeper.latest_verified() is None
        keeper.save(20, tree(20), {})
        keeper.close()
        assert opened(tmp_path / policy).start_step() == 20


def test_donated_arrays_may_go_while_saving(tmp_path):
    """The save is over when it returns, as far as the arrays are concerned."""
    keeper = opened(tmp_path)
    arrays = {"params": {"w": jnp.arange(1 << 20, dtype=jnp.float32)}}
    wanted = np.asarray(arrays["params"]["w"]).copy()
    keeper.save(1, arrays, {})
    arrays["params"]["w"].delete()
    keeper.close()
    found = opened(tmp_path).restore(1, abstract({"params": {"w": jnp.asarray(wanted)}}))
    assert np.array_equal(np.asarray(found["params"]["w"]), wanted)
