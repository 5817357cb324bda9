"""What was left out of a prepared set, by rule, as people read it before a run starts."""

from __future__ import annotations

from collections.abc import Mapping

LONG_ROW = "longer than a row"  # examples that may not be cut, at the run's SEQ_LEN
ASKED = ("held out", "not held out")  # not worth a word: HOLDOUT asked for it


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {count:,}" for rule, count in counts.items())


def line(name: str, manifest: Mapping, too_long: int) -> str:
    """One line about a set, "" where every row of it is used.

    manifest: of the set. too_long: examples that are longer than a row of the run.
    """
    drops = {rule: count for rule, count in manifest["drops"].items() if rule not in ASKED}
    drops |= {LONG_ROW: too_long} if too_long else {}
    parts = [f"left out: {counted(drops)}"] if drops else []
    if manifest["audit"]:
        parts.append(f"audit: {counted(manifest['audit'])}")
    if notes := manifest.get("notes"):
        parts.append(f"kept, but look: {counted(notes)}")
    if manifest.get("quarantine"):
        parts.append(f"bad rows: {manifest['quarantine']}")
    if not parts:
        return ""
    counts = manifest["counts"]
    kept = counts["examples"] - too_long
    return f"{name}: {kept:,} examples of {counts['read']:,} read; {'; '.join(parts)}"
