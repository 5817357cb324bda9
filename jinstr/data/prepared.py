"""A prepared set on disk, and how to read it. numpy, msgpack and ArrayRecord only.

<set>/manifest.json             what it is, where it came from, what was dropped; written last
<set>/shard-00000-of-00004      ArrayRecord, one msgpack record each (records.py)
<set>/lengths.npy               i32 [records]: targets of each record
<set>/text_bytes.npy            f64 [records]: UTF-8 bytes of the trained text, times its weight
<set>/pack-<T>/                 rows of T places (packing.py)
<set>.quarantine.jsonl          bad rows that were left out (bad_rows.py)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
import xxhash
from array_record.python import array_record_module

from jinstr import errors
from jinstr.data import records

FORMAT = 1
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
_WAY_OUT = "VERIFY_DATA=True finds such files at the start, and makes sets of the cache again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedSource:
    """A prepared set as one source of a mixture."""

    path: str
    name: str
    rate: float = 1.0


def file_digest(path: pathlib.Path) -> str:
    """xxh3 of a file's bytes, hex."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _known_digest(path: pathlib.Path, size: int, changed: int) -> str:
    """The digest of a file in one state: a start opens a set several times."""
    del size, changed
    return file_digest(path)


def is_prepared(path: str | pathlib.Path) -> bool:
    """Whether a folder holds a finished prepared set."""
    return (pathlib.Path(path) / MANIFEST).is_file()


def has_lost_manifest(path: str | pathlib.Path) -> bool:
    """Whether a folder holds the files of a set, but no manifest."""
    path = pathlib.Path(path).expanduser()
    return (path / "lengths.npy").is_file() and not is_prepared(path)


def manifest_digest(manifest: dict) -> str:
    """xxh3 of everything in a manifest but its own `digest`, hex."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return xxhash.xxh3_64_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _read_manifest(path: pathlib.Path) -> dict:
    """Errors: StorageError when it is not what was written."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        # Sets of older versions have no digest.
        sound = manifest.get("digest", "") in ("", manifest_digest(manifest))
    except (ValueError, AttributeError):
        sound = False
    if not sound:
        raise errors.StorageError(
            "JI-PREP-006", f"{path} is damaged; remove {path.parent} and prepare again"
        )
    return manifest


def load_array(path: pathlib.Path) -> np.ndarray:
    """A .npy file as a memory map. Errors: StorageError unless it holds numbers; objects would be code."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise errors.StorageError(
            "JI-PREP-005", f"{path}: not an array of numbers ({error}); prepare the set again"
        ) from None


class PreparedSet:
    """Records of one kind from one source, by number. Reading is thread-safe."""

    def __init__(self, path: str | pathlib.Path, verify: bool = False):
        """Open a set; `verify` rehashes every file instead of comparing sizes.

        Errors: StorageError when the manifest is missing or of another format, or a file does not match it.
        """
        self.path = pathlib.Path(path)
        if not is_prepared(self.path):
            raise errors.StorageError(
                "JI-PREP-001", f"{self.path} is not a prepared set: it has no {MANIFEST}"
            )
        self.manifest = _read_manifest(self.path / MANIFEST)
        if self.manifest.get("format") != FORMAT:
            raise errors.StorageError(
                "JI-PREP-002",
                f"{self.path}: format {self.manifest.get('format')}, this version reads {FORMAT}; prepare it again",
            )
        self._check_files(verify)
        self.kind: str = self.manifest["kind"]
        self.dtype: str = self.manifest["tokens"]["dtype"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.lengths: np.ndarray = load_array(self.path / "lengths.npy")
        self.text_bytes: np.ndarray = load_array(self.path / "text_bytes.npy")
        self._ends = np.cumsum([shard["records"] for shard in self.manifest["shards"]])
        self._lock = threading.Lock()

    def _check_files(self, verify: bool) -> None:
        """Sizes of all files, and digests: of the arrays, which are small and read at every start, or of all files."""
        for name, facts in self.manifest["files"].items():
            file = self.path / name
            state = file.stat() if file.exists() else None
            size = state.st_size if state else None
            if size != facts["bytes"]:
                raise errors.StorageError(
                    "JI-PREP-003",
                    f"{file}: {size} bytes, the manifest says {facts['bytes']}; remove {self.path} and prepare again",
                )
            if not verify and not name.endswith(".npy"):
                continue
            digest = file_digest(file) if verify else _known_digest(file, size, state.st_mtime_ns)
            if digest != facts["xxh3"]:
                raise errors.StorageError(
                    "JI-PREP-004",
                    f"{file}: its bytes changed since it was written; remove {self.path} and prepare again",
                )

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def _readers(self) -> list[array_record_module.ArrayRecordReader]:
        """One open reader per shard. ArrayRecord opens a missing file as empty, so counts are compared."""
        readers = []
        for shard in self.manifest["shards"]:
            reader = array_record_module.ArrayRecordReader(
                str(self.path / shard["file"]), "readahead_buffer_size:0"
            )
            if reader.num_records() != shard["records"]:
                raise errors.StorageError(
                    "JI-PREP-005",
                    f"{self.path / shard['file']}: {reader.num_records()} records, "
                    f"the manifest says {shard['records']}; {_WAY_OUT}",
                )
            readers.append(reader)
        return readers

    def read_bytes(self, indices: Sequence[int] | np.ndarray) -> list[bytes]:
        """The packed records of the given numbers, in the order asked; one read per shard."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not (0 <= indices.min() and indices.max() < len(self)):
            raise IndexError(f"record numbers outside 0..{len(self) - 1}: {indices.tolist()}")
        shards = np.searchsorted(self._ends, indices, side="right")
        found: list[bytes] = [b""] * len(indices)
        with self._lock:
            for shard in np.unique(shards).tolist():
                places = np.flatnonzero(shards == shard)
                first = self._ends[shard] - self.manifest["shards"][shard]["records"]
                data = self._read_shard(shard, (indices[places] - first).tolist())
                for place, packed in zip(places.tolist(), data, strict=True):
                    found[place] = packed
        return found

    def _read_shard(self, shard: int, numbers: list[int]) -> list[bytes]:
        """Errors: StorageError where ArrayRecord, which keeps a hash of every record, finds other bytes."""
        try:
            return self._readers[shard].read(numbers)
        except (RuntimeError, ValueError, OSError) as error:
            file = self.path / self.manifest["shards"][shard]["file"]
            why = " ".join(str(error).split()[:12])
            raise errors.StorageError(
                "JI-PREP-007",
                f"{file}, records {numbers[0]} to {numbers[-1]}: {why}; {_WAY_OUT}",
            ) from None

    def read(self, indices: Sequence[int] | np.ndarray) -> list[records.Record]:
        """The records of the given numbers, in the order asked."""
        return [records.unpack(self.kind, data, self.dtype) for data in self.read_bytes(indices)]
