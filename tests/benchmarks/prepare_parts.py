"""One process, array jobs and Apache Beam prepare the same text: the same bytes? And how fast?

    python tests/benchmarks/prepare_parts.py CORPUS TOKENIZER.model [PARTS]

CORPUS as DATA= takes it. Each way runs from the files to the finished set, process starts included:

    1 process     jinstr prepare WORKERS=1
    2 threads     jinstr prepare WORKERS=2
    array jobs    jinstr prepare PART=i/N WORKERS=1, two at a time, then MERGE=True WORKERS=2
    Beam          jinstr prepare RUNNER=direct WORKERS=2; without Beam it is left out, with a word

Prints seconds and MB/s of each, the share of the merge, and whether every file of the set has the bytes of the first.
Negative control: with one byte of the text changed, they have not. Exits with 1 where any of this is not so.
"""

import concurrent.futures
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from jinstr.data import prepared, readers

RUN = [sys.executable, "-c", "import sys; from jinstr import run; sys.exit(run.main())", "prepare"]


def call(words: list[str], *more: str) -> float:
    """Seconds of one `jinstr prepare`."""
    before = time.perf_counter()
    done = subprocess.run([*RUN, *words, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.perf_counter() - before


def by_jobs(words: list[str], parts: int) -> tuple[float, float]:
    """(seconds of all, seconds of the merge)"""
    before = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        names = [f"PART={part}/{parts}" for part in range(1, parts + 1)]
        list(pool.map(functools.partial(call, words, "WORKERS=1"), names))
    merge = call(words, "MERGE=True", "WORKERS=2")
    return time.perf_counter() - before, merge


def digests(cache: pathlib.Path) -> dict[str, str]:
    """Of every file of the one set in a cache."""
    (folder,) = (path for path in cache.iterdir() if prepared.is_prepared(path))
    return {path.name: prepared.file_digest(path) for path in folder.iterdir() if path.is_file()}


def with_one_byte_changed(corpus: str, folder: pathlib.Path) -> str:
    """A copy of the corpus, in which one letter of one file is another."""
    for number, part in enumerate(corpus.split("+")):
        place = folder / str(number) / pathlib.Path(part).name
        copy = shutil.copytree if pathlib.Path(part).is_dir() else shutil.copy
        place.parent.mkdir(parents=True)
        copy(part, place)
    changed = "+".join(str(next((folder / str(n)).iterdir())) for n in range(number + 1))
    file = readers.files_of(changed)[-1]
    data = file.read_bytes()
    place = data.index("の".encode(), len(data) // 2) + 2
    os.chmod(file, 0o644)
    file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    return changed


def main() -> int:
    corpus, tokenizer = sys.argv[1:3]
    parts = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    paths = readers.files_of(corpus)
    size = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} files, {size / 1e6:.1f} MB, {os.cpu_count()} cores, {parts} parts")
    beam = subprocess.run([sys.executable, "-c", "import apache_beam"], capture_output=True)
    with tempfile.TemporaryDirectory() as place:
        cache = pathlib.Path(place) / "cache"

        def run(name: str, do, data: str = corpus):
            shutil.rmtree(cache, ignore_errors=True)
            words = [f"DATA={data}", f"TOKENIZER={tokenizer}", f"CACHE_DIR={cache}"]
            seconds, told = do(words), ""
            if isinstance(seconds, tuple):
                seconds, merge = seconds
                told = f", {merge:.1f} s of it the merge"
            found = digests(cache)
            print(f"{name:<12}{seconds:7.1f} s {size / 1e6 / seconds:6.2f} MB/s{told}", flush=True)
            return found

        one = run("1 process", lambda words: call(words, "WORKERS=1"))
        others = {
            "2 threads": run("2 threads", lambda words: call(words, "WORKERS=2")),
            "array jobs": run("array jobs", lambda words: by_jobs(words, parts)),
        }
        if beam.returncode:
            print("Beam        left out: apache_beam cannot be imported here")
        else:
            options = ("RUNNER=direct", "WORKERS=2", f"PARTS={parts}")
            others["Beam"] = run("Beam", lambda words: call(words, *options))
        same = [name for name, found in others.items() if found == one]
        print(f"the bytes of 1 process: {', '.join(same)} of {', '.join(others)}")
        changed = with_one_byte_changed(corpus, pathlib.Path(place) / "changed")
        other = run("changed", lambda words: call(words, "WORKERS=2"), changed)
        shards = [name for name in one if name.startswith("shard-") and one[name] != other[name]]
        print(f"with one byte of the text changed, {len(shards)} shards have other bytes")
    return int(len(same) < len(others) or not shards)


if __name__ == "__main__":
    sys.exit(main())
