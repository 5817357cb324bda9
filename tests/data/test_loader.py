"""Batches by step: a closed form of (seed, step), the same on any number of hosts, shares as asked."""

import itertools

import numpy as np
import pytest

from jinstr.data import audit, batching, loader, packing, prepared
from jinstr.text import tokenizer as tokenizer_lib

FIELDS = ("tokens", "targets", "loss_weights", "positions", "segment_ids")


def open_loader(sets, **settings):
    config = {"seq_len": 128, "batch_rows": 8, "seed": 3} | settings
    return loader.Loader(sets, loader.LoaderConfig(**config))


def test_every_array_speaks_of_its_target(sets, tokenizer_path):
    """A batch against its records, one segment at a time."""
    data, tokenizer = open_loader(sets), tokenizer_lib.load(tokenizer_path)
    index = {place.name: prepared.PreparedSet(place.path) for place in sets}
    known = {
        name: {(r.id, r.part): r for r in opened.read(range(len(opened)))}
        for name, opened in index.items()
    }
    for step in (0, 11):
        batch, names = data.read(step), iter(data.example_ids(step))
        audit.check_batch(batch, tokenizer)
        for row in range(8):
            segments = batch["segment_ids"][row]
            count = int(segments.max())
            assert np.array_equal(np.unique(segments[segments > 0]), np.arange(1, count + 1))
            for segment in range(1, count + 1):
                places = np.flatnonzero(segments == segment)
                source, id, number = next(names)
                record = known[source][id, number >> 20]
                start = number & ((1 << 20) - 1)
                ids = record.tokens[start : start + len(places) + 1]
                assert np.array_equal(batch["tokens"][row, places], ids[:-1])
                assert np.array_equal(batch["targets"][row, places], ids[1:])
                assert np.array_equal(batch["positions"][row, places], np.arange(len(places)))
                mask = getattr(record, "mask", np.ones(len(record.tokens), bool))
                weights = mask[start + 1 : start + len(places) + 1] * getattr(record, "weight", 1.0)
                assert np.allclose(batch["loss_weights"][row, places], weights, atol=0)
            padding = segments == 0
            assert (batch["tokens"][row, padding] == data.pad_id).all()
            assert (batch["loss_weights"][row, padding] == 0).all()
        assert next(names, None) is None


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_processes_together_read_the_same_batch(sets, hosts):
    data = open_loader(sets)
    for step in (0, 5):
        whole = data.read(step)
        parts = [data.read(step, places) for places in np.split(np.arange(8), hosts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
        assert batching.batch_digest(joined) == batching.batch_digest(whole)
        parts.reverse()
        joined = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
        assert batching.batch_digest(joined) != batching.batch_digest(whole)


def test_iteration_from_any_step_is_reading_that_step(sets):
    data = open_loader(sets)
    for start in (0, 17):
        for step, batch in itertools.islice(data.iterate(start), 3):
            assert batching.batch_digest(batch) == batching.batch_digest(data.read(step))
        assert step == start + 2
    assert batching.batch_digest(data.read(1)) != batching.batch_digest(data.read(2))
    other = open_loader(sets, seed=4)
    assert batching.batch_digest(other.read(1)) != batching.batch_digest(data.read(1))


def test_an_epoch_is_every_row_once(sets):
    data = open_loader(sets[:1], batch_rows=1)
    rows = [tuple(data.example_ids(step)) for step in range(2 * data.num_rows)]
    first, second = rows[: data.num_rows], rows[data.num_rows :]
    assert len(set(first)) == data.num_rows and set(first) == set(second) and first != second
    assert data.steps_per_epoch == data.num_rows


def test_passes_are_what_the_rate_says(sets):
    """One epoch with rates 3 and 1: three passes over one source, one over the other."""
    data = open_loader(sets, rate_unit="passes")
    end = data.shares(round(data.steps_per_epoch))
    found = [facts["epochs"] for facts in end.values()]
    assert found == pytest.approx([place.rate for place in sets], rel=0.05)
    other = open_loader(sets, rate_unit="tokens")  # negative control: shares of rows are not passes
    found = [facts["epochs"] for facts in other.shares(round(data.steps_per_epoch)).values()]
    assert found != pytest.approx([place.rate for place in sets], rel=0.05)


def test_another_packing_is_another_data_state(sets, monkeypatch):
    """A run must not go on over rows that hold other examples than before."""
    before = open_loader(sets, seq_len=96)
    assert open_loader(sets, seq_len=96).fingerprint == before.fingerprint
    monkeypatch.setattr(packing, "load", lambda path, seq_len: None)
    monkeypatch.setattr(packing, "save", lambda index, path: None)
    monkeypatch.setattr(packing, "WINDOW", 64)
    monkeypatch.setattr(packing.build, "__kwdefaults__", {"window": 64})
    assert open_loader(sets, seq_len=96).fingerprint != before.fingerprint


@pytest.mark.parametrize("unit", ["tokens", "examples", "passes"])
def test_shares_are_as_asked(sets, unit):
    """1,000 steps, counted one by one, in both units; the report says the same."""
    data = open_loader(sets, rate_unit=unit)
    counted = {place.name: [0, set(), 0] for place in sets}
    for step in range(1000):
        for source, row in data._rows(step):
            counted[sets[source].name][0] += 1
            counted[sets[source].name][1].add(row)
    for (name, facts), place in zip(data.shares(1000).items(), sets):
        assert abs(facts["asked"] - facts["realised"]) < 0.005, (name, facts)
        rows = counted[name][0]
        size = data._sources[[place.name for place in sets].index(name)].num_rows
        assert facts["epochs"] == pytest.approx(rows / size)
        assert len(counted[name][1]) == min(rows, size)
        if unit == "tokens":
            assert abs(rows / 8000 - place.rate / 4) < 0.005
    # Negative control: tokens and examples are different shares.
    other = open_loader(sets, rate_unit="tokens" if unit != "tokens" else "examples")
    assert other._rows(999) != data._rows(999)


def test_evaluation_reads_every_row_once(sets):
    data = open_loader(sets[1:], batch_rows=7)
    seen = [b for b in data.evaluation_batches()]
    assert len({b["tokens"].shape for b in seen}) == 1
    weight = sum(b["loss_weights"].sum() for b in seen)
    rows = [data.read_rows([row])["loss_weights"].sum() for row in range(data.num_rows)]
    assert weight == pytest.approx(sum(rows), rel=1e-6) and len(rows) % 7


def test_packing_loses_and_doubles_nothing(sets):
    for place in sets:
        opened = prepared.PreparedSet(place.path)
        lengths = np.asarray(opened.lengths)
        index = packing.build(lengths, seq_len=128, cut=opened.kind == "lm")
        covered = np.zeros(len(lengths), int)
        for piece in index.pieces:
            assert piece["start"] + piece["length"] <= lengths[piece["record"]]
            covered[piece["record"]] += piece["length"]
        kept = lengths if opened.kind == "lm" else np.where(lengths <= 128, lengths, 0)
        assert np.array_equal(covered, kept)
        for first, last in zip(index.offsets, index.offsets[1:]):
            assert 0 < index.pieces["length"][first:last].sum() <= 128

