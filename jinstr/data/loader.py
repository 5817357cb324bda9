"""Prepared sets to batches: the rows of step s are a closed-form function of (seed, s).

Rows of a run are numbered slots, `batch_rows` per step; mixing.Schedule says which source fills a slot with its how
manieth row, and an index permutation (another one in every epoch) says which packed row that is. No state, no replay:
a checkpoint keeps the step number. Each of several processes reads the slots of a step that its devices hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np
import xxhash

from jinstr import errors
from jinstr.data import batching, comparisons, fingerprints, mixing, packing, prepared
from jinstr.testing import faults

NO_ROWS = "JI-LOAD-002"  # code of the error of a set without an example that fits a row
TEXT = ("lm", "chat")  # kinds of records whose tokens are trained as they stand
_ENDLESS = 1 << 40  # length of the step sequence shown to grain; training stops by itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How rows become batches."""

    seq_len: int  # places in a row
    batch_rows: int  # rows in a batch, over all processes
    seed: int = 0  # orders rows; does not touch what is in a row
    rate_unit: str = "tokens"  # what sources' rates count: tokens | examples | passes
    prefetch: int = 4  # batches read ahead by `iterate`


class _Source:
    """One packed set of the mixture."""

    def __init__(self, source: prepared.PreparedSource, seq_len: int, kinds: Sequence[str]):
        self.name, self.rate = source.name, source.rate
        self.set = prepared.PreparedSet(source.path)
        if self.set.kind not in kinds:
            wanted = {
                TEXT: "text or conversations",
                comparisons.KINDS: "rankings or pairs of answers",
                comparisons.LABELLED: "answers with labels (prompt, response, label)",
            }[tuple(kinds)]
            raise errors.ConfigError(
                "JI-LOAD-001",
                f"{source.name} holds {self.set.kind} records; this command trains on {wanted}",
            )
        index = packing.load(self.set.path, seq_len)
        if index is None:
            cut = self.set.kind == "lm"
            index = packing.build(self.set.lengths, seq_len=seq_len, cut=cut)
            packing.save(index, self.set.path)
        if index.num_rows == 0:
            raise errors.DataError(
                NO_ROWS,
                f"{source.name}: nothing to train on at SEQ_LEN={seq_len} "
                f"({len(self.set)} records, {index.dropped} too long)",
            )
        self.index = index
        self.num_rows = index.num_rows
        self.num_examples = self.set.manifest["counts"]["examples"] - index.dropped

    @property
    def identity(self) -> dict:
        """What tells this source from another, for fingerprints.record."""
        return fingerprints.of_set(
            self.name, self.rate, str(self.set.path), self.set.manifest, self.index.digest
        )

    @property
    def text_bytes(self) -> float:
        """Weighted UTF-8 bytes of the text behind all rows."""
        kept = np.ones(len(self.set), bool)
        if self.set.kind != "lm":
            kept = np.asarray(self.set.lengths) <= self.index.seq_len
        return float(self.set.text_bytes[kept].sum())


class Loader:
    """Batches of a mixture of prepared sets, by step."""

    def __init__(
        self,
        sources: Sequence[prepared.PreparedSource],
        config: LoaderConfig,
        kinds: Sequence[str] = TEXT,
    ):
        """Open the sets, of these kinds, and pack them for `config.seq_len` where that was not done yet.

        Errors: ConfigError when the sets were prepared with different tokenizers, or rates do not fit.
        """
        self.config = config
        self._sources = [_Source(source, config.seq_len, kinds) for source in sources]
        tokens = [source.set.manifest["tokens"] for source in self._sources]
        if len({facts["tokenizer"] for facts in tokens}) != 1:
            raise errors.ConfigError(
                "JI-LOAD-003",
                "sources were prepared with different tokenizers: "
                + ", ".join(f"{s.name}={t['tokenizer']}" for s, t in zip(self._sources, tokens)),
            )
        self.pad_id: int = tokens[0]["pad_id"]
        self._schedule = mixing.Schedule(self._row_shares())
        self._ends = np.cumsum([source.num_rows for source in self._sources])
        self.num_rows = int(self._ends[-1])
        self.bytes_total = sum(source.text_bytes for source in self._sources)
        if self._sources[0].set.kind in comparisons.ALL_KINDS:
            # Prompts of a row and answers to a prompt, at most: batches of all steps have one shape.
            self._most = (
                max(int(np.diff(source.index.offsets).max()) for source in self._sources),
                max(comparisons.most_answers(source.set.manifest) for source in self._sources),
            )
        batches = dataclasses.asdict(config)
        del batches["prefetch"]
        self.identity: dict = fingerprints.record(
            [source.identity for source in self._sources], batches
        )  # what checkpoints keep
        self.fingerprint: str = self.identity["fingerprint"]

    def _row_shares(self) -> np.ndarray:
        rates = [source.rate for source in self._sources]
        rows = [source.num_rows for source in self._sources]
        examples = [source.num_examples for source in self._sources]
        return mixing.row_shares(rates, self.config.rate_unit, rows, examples)

    @property
    def steps_per_epoch(self) -> float:
        """Steps of one epoch: every source as often as its rate says when rates count passes, else once on average."""
        rows = [source.num_rows for source in self._sources]
        if self.config.rate_unit == "passes":
            rows = [source.rate * source.num_rows for source in self._sources]
        return sum(rows) / self.config.batch_rows

    def shares(self, step: int) -> dict[str, dict[str, float]]:
        """Asked and realised share of each source in steps 0 to `step` - 1, in `rate_unit`, and its epochs so far."""
        rows_S = self._schedule.counts(step * self.config.batch_rows)
        per_row = {
            "tokens": [1.0 for _ in self._sources],
            "examples": [source.num_examples / source.num_rows for source in self._sources],
            "passes": [1 / source.num_rows for source in self._sources],
        }[self.config.rate_unit]
        units_S = rows_S * np.array(per_row)
        asked = sum(source.rate for source in self._sources)
        return {
            source.name: {
                "asked": source.rate / asked,
                "realised": float(units / max(1e-9, units_S.sum())),
                "epochs": float(rows / source.num_rows),
            }
            for source, units, rows in zip(self._sources, units_S, rows_S)
        }

    def _rows(self, step: int, places: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """(source, packed row) of each row of a step's batch, or of those at these places of it."""
        first = step * self.config.batch_rows
        slots = range(first, first + self.config.batch_rows)
        if places is not None:
            slots = [slots[place] for place in places]
        located = self._schedule.locate(slots)
        return [(source, self._shuffled(source, ordinal)) for source, ordinal in located]

    def _shuffled(self, source: int, ordinal: int) -> int:
        """The `ordinal`-th row of a source's endless sequence: every epoch is another permutation of its rows."""
        epoch, place = divmod(ordinal, self._sources[source].num_rows)
        seed = f"{self.config.seed}\0{self._sources[source].name}\0{epoch}"
        return grain.experimental.index_shuffle(
            place,
            max_index=self._sources[source].num_rows - 1,
            seed=xxhash.xxh3_64_intdigest(seed.encode()) & 0x7FFFFFFF,
            rounds=4,
        )

    def _pieces(self, rows: Sequence[tuple[int, int]]) -> list[list[tuple]]:
        """(record, start, length, source) of each segment of each row, one read per source."""
        pieces = [
            self._sources[source].index.pieces[
                slice(*self._sources[source].index.offsets[row : row + 2])
            ]
            for source, row in rows
        ]
        records: dict[tuple[int, int], object] = {}
        for number, source in enumerate(self._sources):
            mine = [p["record"] for p, (owner, _) in zip(pieces, rows) if owner == number]
            wanted = np.unique(np.concatenate(mine)) if mine else np.empty(0, np.int64)
            for index, record in zip(wanted.tolist(), source.set.read(wanted)):
                records[number, index] = record
        return [
            [
                (records[owner, record], start, length, owner)
                for record, start, length in row.tolist()
            ]
            for row, (owner, _) in zip(pieces, rows)
        ]

    def _batch(self, rows: Sequence[tuple[int, int]], empty: int = 0) -> dict[str, np.ndarray]:
        """The batch of the given rows, followed by `empty` rows of padding."""
        if self._sources[0].set.kind in comparisons.ALL_KINDS:
            ranked = [[record for record, *_ in row] for row in self._pieces(rows)]
            ranked += [[] for _ in range(empty)]
            return comparisons.assemble(ranked, self.config.seq_len, self.pad_id, *self._most)
        segments = []
        for row in self._pieces(rows):
            segments.append([])
            for record, start, length, _ in row:
                ids = record.tokens[start : start + length + 1]
                chat = hasattr(record, "mask")
                segments[-1].append(
                    (ids, record.mask if chat else None, record.weight if chat else 1.0)
                )
        return batching.assemble(
            segments + [[] for _ in range(empty)], self.config.seq_len, self.pad_id
        )

    def read(self, step: int, places: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """The batch of a step, i32 and f32 [batch_rows, T], or the rows at these places of it.

        Errors: StorageError naming the step and the place, where records cannot be read.
        """
        rows = self._rows(step, places)
        try:
            faults.point("data_read", step)
            return self._batch(rows)
        except errors.StorageError as error:
            raise errors.StorageError(
                error.code, f"data of step {step + 1}: {error.message}"
            ) from None
        except OSError as error:
            names = ", ".join(self._sources[n].name for n in sorted({source for source, _ in rows}))
            raise errors.StorageError(
                "JI-LOAD-006", f"data of step {step + 1}, of {names}: {error}"
            ) from None

    def example_ids(self, step: int) -> list[tuple[str, str, int]]:
        """(source, example id, first target of the segment in its example's chunk order) of a step's segments.

        The third number is part · 2^20 + first target in it: chunk and window of a text, turn of a conversation.
        """
        return [
            (self._sources[owner].name, record.id, (record.part << 20) + start)
            for row in self._pieces(self._rows(step))
            for record, start, _, owner in row
        ]

    def iterate(
        self, start_step: int, places: Sequence[int] | None = None
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """(step, `read` of it) from `start_step` on, without end, read ahead in a thread by grain."""
        steps = grain.MapDataset.source(_Steps(self, places))
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self.config.prefetch)
        iterator = iter(steps.to_iter_dataset(options))
        grain.experimental.set_next_index(iterator, start_step)
        yield from iterator

    def read_rows(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of the given rows (0 to num_rows - 1, sources in order); number -1 is a row of padding."""
        filled = self._located([row for row in rows if row >= 0])
        return self._batch(filled, empty=len(rows) - len(filled))

    def _located(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """(source, its row) of each of the rows."""
        owners = np.searchsorted(self._ends, rows, side="right")
        return [
            (int(owner), int(row - self._ends[owner] + self._sources[owner].num_rows))
            for owner, row in zip(owners, rows)
        ]

    def read_records(self, rows: Sequence[int]) -> list[list]:
        """The records of the given rows (0 to num_rows - 1, sources in order), row by row."""
        return [[record for record, *_ in row] for row in self._pieces(self._located(rows))]

    def first_records(self, count: int) -> list:
        """The first `count` records of the first source, in the set's (shuffled) order."""
        first = self._sources[0].set
        return first.read(range(min(count, len(first))))

    @property
    def is_chat(self) -> bool:
        """Are the records of the first source conversations?"""
        return self._sources[0].set.kind == "chat"

    def evaluation_batches(
        self, places: Sequence[int] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Every row once, in order; the last batch is filled up with rows of padding. places: as in `read`."""
        size = self.config.batch_rows
        for first in range(0, self.num_rows, size):
            rows = [first + place for place in (range(size) if places is None else places)]
            yield self.read_rows([row if row < self.num_rows else -1 for row in rows])


class _Steps:
    """The steps of a loader as a random-access source for grain."""

    def __init__(self, loader: Loader, places: Sequence[int] | None):
        self._loader, self._places = loader, places

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> tuple[int, dict[str, np.ndarray]]:
        return step, self._loader.read(step, self._places)
