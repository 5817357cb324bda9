"""Damaged sets are made again or refused; killed builds leave nothing; processes that end say at what example."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jinstr import errors
from jinstr.data import building, loader, marks, packing, prepare, prepared, sources
from jinstr.testing import faults


@pytest.fixture
def own(make, world, tmp_path):
    """A function that prepares a file of the world in a cache of its own; returns the folder of the set."""

    def call(name="corpus", **settings):
        source = sources.SourceConfig(path=f"{world}/{name}.jsonl")
        (place,) = make(source, cache_dir=str(tmp_path / "cache"), **settings)
        return pathlib.Path(place.path)

    return call


@pytest.fixture
def arm():
    """A function that arms faults until the test ends."""
    yield faults.enable
    faults.enable("")


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)


def first_shard(folder):
    return next(folder.glob("shard-*"))


def change_manifest(folder):
    text = (folder / "manifest.json").read_text("utf-8")
    (folder / "manifest.json").write_text(text.replace('"pad_id": 0', '"pad_id": 1'), "utf-8")


DAMAGE = {
    "manifest removed": (lambda f: (f / "manifest.json").unlink(), {}),
    "manifest cut": (lambda f: os.truncate(f / "manifest.json", 100), {}),
    "manifest changed": (change_manifest, {}),
    "shard cut": (lambda f: os.truncate(first_shard(f), 999), {}),
    "shard removed": (lambda f: first_shard(f).unlink(), {}),
    "bit of the lengths": (lambda f: flip(f / "lengths.npy"), {}),
    "bit of a shard": (lambda f: flip(first_shard(f), 0.3), {"verify_data": True}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_set_of_the_cache_is_made_again(own, kind, tokenizer_path, capsys, tmp_path):
    folder = own()
    whole = files(folder)
    damage, settings = DAMAGE[kind]
    damage(folder)
    assert files(folder) != whole
    given = tmp_path / "given"
    shutil.copytree(folder, given)
    assert own(**settings) == folder and files(folder) == whole
    assert "it is made again" in capsys.readouterr().out
    assert [path.name for path in folder.parent.glob(".*")] == []
    # Negative control: a sound one is left alone. A set that was given, not made, is refused.
    own(**settings)
    assert capsys.readouterr().out == ""
    config = prepare.PrepareConfig(cache_dir=str(tmp_path / "c"), workers=1, **settings)
    with pytest.raises(errors.StorageError, match="given"):
        prepare.ensure_prepared(
            [sources.SourceConfig(path=str(given))],
            tokenizer_path=tokenizer_path,
            template="",
            config=config,
        )


def test_a_flipped_bit_of_a_shard_is_never_read(own):
    """40 places: the same records, or an error that names the shard."""
    folder = own()
    opened = prepared.PreparedSet(folder)
    whole = opened.read_bytes(range(len(opened)))
    sound = first_shard(folder).read_bytes()
    seen = {"same": 0, "error": 0}
    for place in range(40):
        first_shard(folder).write_bytes(sound)
        flip(first_shard(folder), (place + 0.5) / 40)
        try:
            opened = prepared.PreparedSet(folder)
            assert opened.read_bytes(range(len(opened))) == whole
            seen["same"] += 1  # a bit of the padding
        except errors.StorageError as error:
            assert "shard-00000-of-00001" in str(error) and "VERIFY_DATA=True" in str(error)
            seen["error"] += 1
        with pytest.raises(errors.StorageError, match="its bytes changed"):
            prepared.PreparedSet(folder, verify=True)
    assert seen["error"] > 5


def test_a_damaged_packing_is_made_again(own, capsys):
    folder = own()
    place = prepared.PreparedSource(path=str(folder), name="a")
    config = loader.LoaderConfig(seq_len=64, batch_rows=2)
    before = loader.Loader([place], config)
    pack = folder / "pack-64"
    for damage in (
        lambda: flip(pack / "pieces.npy", 0.9),
        lambda: os.truncate(pack / "offsets.npy", 200),
        lambda: (pack / "pack.json").unlink(),
    ):
        assert packing.load(folder, 64) is not None and capsys.readouterr().out == ""
        damage()
        after = loader.Loader([place], config)
        assert after.fingerprint == before.fingerprint
        assert "pack-64 is damaged; its rows are packed again" in capsys.readouterr().out
    assert (after.read(3)["tokens"] == before.read(3)["tokens"]).all()


def test_folders_of_killed_builds_are_removed(tmp_path):
    with building.folder_for(tmp_path / "set-1") as (held, _):
        dead, old, new = (tmp_path / f".set-{name}" for name in ("dead", "old", "new"))
        (dead / "work").mkdir(parents=True)
        (dead / "work" / "lock").touch()
        old.mkdir()
        os.utime(old, (1, 1))
        new.mkdir()
        assert set(building.remove_left_over(tmp_path)) == {dead, old}
        assert held.exists() and new.exists() and not dead.exists() and not old.exists()
    assert not held.exists()
    # Locks of another machine may not be seen here: its folder waits for a day.
    other = tmp_path / ".set-other"
    (other / "work").mkdir(parents=True)
    (other / "work" / "lock").write_text("another-machine")
    assert building.remove_left_over(tmp_path) == []
    for path in (other / "work", other):
        os.utime(path, (1, 1))
    assert other in building.remove_left_over(tmp_path)
    with building.folder_for(tmp_path / "set-2") as (held, lock):
        # The lock of a child process counts too.
        code = "import time; print(flush=True); time.sleep(60)"
        command = [sys.executable, "-c", code]
        child = subprocess.Popen(command, pass_fds=[lock], stdout=subprocess.PIPE)
        child.stdout.readline()
        os.rename(held, tmp_path / ".set-moved")  # so that the end of the block removes nothing
    assert building.remove_left_over(tmp_path) == []
    child.kill()
    child.wait()
    assert building.remove_left_over(tmp_path) == [tmp_path / ".set-moved"]


@pytest.mark.parametrize("name", ["corpus", "instructions"])  # threads, processes
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("action", ["kill", "error"])
def test_an_encoding_process_that_ends_names_its_example(own, arm, name, workers, action, tmp_path):
    arm(f"encode@7={action}")
    before = time.monotonic()
    with pytest.raises(errors.DataError) as caught:
        own(name, workers=workers)
    assert time.monotonic() - before < 30
    if action == "kill":
        assert "was killed by signal 9 (SIGKILL) at example " in caught.value.message
    else:
        assert caught.value.code == "JI-PREPARE-014"
        assert "injected at encode@7" in caught.value.message
    assert os.listdir(tmp_path / "cache") == ["digests.json"]
    arm("")
    assert own(name, workers=workers).is_dir()  # the same command again


def test_errors_travel_between_processes():
    """By default an exception is made again from its text alone, which is one part too few."""
    error = errors.DataError("JI-X-001", "text")
    kind, parts = error.__reduce__()
    assert str(kind(*parts)) == str(error) and kind(*parts).code == "JI-X-001"
    with pytest.raises(TypeError):
        kind(*error.args)


def test_reading_that_stops_names_the_row(own, arm):
    arm("read_row@9=error")
    with pytest.raises(errors.StorageError, match="stopped at .*corpus.jsonl:9: .*read_row@9"):
        own()


def test_a_reader_that_fails_ends_the_iteration(own, arm):
    place = prepared.PreparedSource(path=str(own()), name="corpus")
    data = loader.Loader([place], loader.LoaderConfig(seq_len=64, batch_rows=2))
    arm("data_read@5=error")
    seen = []
    before = time.monotonic()
    with pytest.raises(errors.StorageError, match="data of step 6, of corpus: .*data_read@5"):
        for step, _ in data.iterate(2):
            seen.append(step)
    assert seen == [2, 3, 4] and time.monotonic() - before < 10


def test_marks(tmp_path):
    mark = marks.Mark(tmp_path)
    mark.at("文書\n7" * 200)
    assert marks.left(tmp_path, [os.getpid()])[0].startswith("文書\n7")
    mark.at("d1")
    assert marks.left(tmp_path) == ["d1"] and marks.left(tmp_path, [1]) == []
    mark.at("")
    assert marks.left(tmp_path) == []
    assert "status 9 between two examples" in str(marks.killed("s", 9, []))
    assert "take fewer WORKERS" in str(marks.killed("s", -signal.SIGKILL, ["d1"]))
