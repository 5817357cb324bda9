"""What a compiled step moves between devices, read from XLA's text: loops multiplied, of branches the dearest.

XLA counts the body of a loop once in its own analysis, so its text is read here. Bytes are those of one device and
step: payload is the array that is made (all-gather, all-reduce, all-to-all), given (reduce-scatter) or sent; wire is
what crosses the links in a ring of g devices: payload · (g − 1) / g, twice that for an all-reduce (arXiv 1909.09756).
"""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
}
BITS |= {
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "u64": 64,
    "f64": 64,
    "c64": 64,
    "f8e4m3fn": 8,
    "f8e5m2": 8,
}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BETWEEN = "between slices"  # what TPUs send over the network of their hosts; all others stay within a slice
_ARRAY = re.compile(rf"\b({'|'.join(sorted(BITS, key=len, reverse=True))})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str  # what stands behind the operands


class Moved(NamedTuple):
    """Of one kind of collective."""

    count: float = 0
    payload: float = 0  # bytes
    wire: float = 0  # bytes
    hidden: float = 0  # wire bytes of those that may run beside computation

    def plus(self, other: Moved) -> Moved:
        return Moved(*(a + b for a, b in zip(self, other)))


class Collective(NamedTuple):
    """One instruction of a program, or several with one channel: an operation in pieces, beside computation."""

    kind: str
    payload: float  # bytes of one pass
    wire: float  # bytes of one pass
    devices: int  # of one group
    hidden: bool  # may run beside computation
    times: float  # how often it runs in a step
    source: str  # what it belongs to in the traced program


class Found(NamedTuple):
    """Of a program."""

    each: tuple[Collective, ...]
    cycles: (
        float  # the compiler's estimate for all else but kernels of our own; 0 where it gives none
    )
    unknown: int  # loops whose number of passes could not be read; they count once

    @property
    def kinds(self) -> dict[str, Moved]:
        found: dict[str, Moved] = {}
        for kind in (*KINDS, BETWEEN):
            for one in self.each:
                if one.kind == kind:
                    wire = one.wire * one.times
                    moved = Moved(one.times, one.payload * one.times, wire, wire * one.hidden)
                    found[kind] = found.get(kind, Moved()).plus(moved)
        return found

    @property
    def largest(self) -> float:
        """Payload of the largest all-gather, bytes."""
        return max((one.payload for one in self.each if one.kind == "all-gather"), default=0.0)

    @property
    def wire(self) -> float:
        return sum(one.wire * one.times for one in self.each)


class _Part(NamedTuple):
    """Of one computation: collectives by channel (or by name, where they have none), cycles, unknown loops."""

    each: dict[tuple, Collective]
    cycles: float
    unknown: int


def read(text: str) -> Found:
    """Collectives of a whole program. Errors: ValueError for a text without an entry computation."""
    computations, entry = _parse(text)
    if not entry:
        raise ValueError("no ENTRY computation in the text")

    @functools.cache
    def of(name: str) -> _Part:
        each: dict[tuple, Collective] = {}
        cycles, unknown = 0.0, 0
        for key, one in computations.get(name, {}).items():
            if key == "ROOT":
                continue
            cycles += _cycles(one)
            for part, times, prefix in _parts(of, computations, name, one):
                unknown += part.unknown + (times is None)
                times = 1 if times is None else times
                cycles += part.cycles * times
                for inner, moved in part.each.items():
                    inner = (*prefix, *inner)
                    moved = moved._replace(times=moved.times * times)
                    each[inner] = _joined(each[inner], moved) if inner in each else moved
            if (kind := one.opcode.removesuffix("-start")) in KINDS:
                moved = _moved(kind, one)
                channel = re.search(r"channel_id=(\d+)", one.attributes)
                inner = ("channel", channel[1]) if channel else (name, one.name)
                each[inner] = _joined(each[inner], moved) if inner in each else moved
            elif one.opcode == "send" and "megascale" in one.attributes:
                each[name, one.name] = _between(one)
        return _Part(each, cycles, unknown)

    found = of(entry)
    return Found(tuple(found.each.values()), found.cycles, found.unknown)


def _joined(one: Collective, other: Collective) -> Collective:
    """An operation that the compiler has cut into pieces, which stand in several fusions: it moves its array once."""
    return max(one, other, key=lambda each: each.payload)._replace(hidden=True)


def _parts(of, computations, name: str, one: Instruction):
    """(what a called computation does, how often, prefix of its keys) for every computation that `one` runs."""
    if one.opcode == "while":
        condition, body = (
            re.search(rf"{word}=%?([\w.\-]+)", one.attributes)[1] for word in ("condition", "body")
        )
        times = trips(computations, computations[name], one, condition, body)
        yield of(body), times, (name, one.name)
    elif one.opcode == "conditional":
        parts = [of(branch) for branch in _called(one)]
        if parts:
            yield max(parts, key=_weight), 1, (name, one.name)
    elif one.opcode in ("fusion", "call", "async-start"):
        for called in _called(one):
            yield of(called), 1, ()


def _weight(part: _Part) -> tuple[float, float]:
    return sum(one.wire * one.times for one in part.each.values()), part.cycles


def _cycles(one: Instruction) -> float:
    found = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
    return float(found[1]) if found else 0.0


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """(instructions by name of every computation, name of the entry)."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    # Metadata of kernels holds line breaks and braces of its own: a computation lasts until the next one begins.
    for line in text.split("\n"):
        if not line.startswith(" ") and (found := _COMPUTATION.match(line)):
            current = computations.setdefault(found[2], {})
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            one = _instruction(found[2], found[3])
            if one:
                current[one.name] = one
                if found[1]:
                    current["ROOT"] = one
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction | None:
    found = _OPCODE.search(" " + rest if rest.startswith("(") else rest)
    if not found:
        return None
    start = rest.index(f"{found[1]}(", max(0, found.start() - 1))
    inside, depth = start + len(found[1]) + 1, 1
    end = inside
    while end < len(rest) and depth:
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[inside : end - 1]))
    arguments = operands or (rest[inside : end - 1].strip(),)
    return Instruction(name, rest[:start], found[1], arguments, rest[end:])


def _called(one: Instruction) -> list[str]:
    names = _CALLED.findall(one.attributes)
    for group in _BRANCHES.findall(one.attributes):
        names += re.findall(r"%?([\w.\-]+)", group)
    return names


def _bytes(type_text: str) -> list[int]:
    """Bytes of every array of a type, in order."""
    sizes = []
    for kind, dimensions in _ARRAY.findall(type_text):
        count = 1
        for size in filter(None, dimensions.split(",")):
            count *= int(size)
        sizes.append(count * BITS[kind] // 8)
    return sizes


def _moved(kind: str, one: Instruction) -> Collective:
    sizes = [size for size in _bytes(one.type) if size > 4] or _bytes(one.type)
    is_start = one.opcode.endswith("-start")
    if kind == "collective-permute":
        payload = sizes[0]
    elif is_start and kind == "all-gather":  # (what is given, what is made, …)
        payload = sum(sizes[len(sizes) // 2 :])
    else:
        payload = sum(sizes)
    g = _group(one.attributes)
    share = (g - 1) / g
    if kind == "reduce-scatter":
        payload *= g
    wire = payload * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
    source = re.search(r'op_name="([^"]*)"', one.attributes)
    return Collective(kind, payload, wire, g, is_start, 1, source[1] if source else "")


def _between(one: Instruction) -> Collective:
    """What a TPU hands to its host for the other slices: each chip its own part of an array. Nothing runs beside it as
    far as the program says; a host's network is not that of the chips, so it may.
    """
    payload = _bytes(one.type)[0]
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes)[1]
    target = re.search(r'_xla_megascale_target="\{([\d,:]*)\}', one.attributes)[1]
    slices = 0
    for part in target.split(","):
        first, _, last = part.partition(":")
        slices += int(last or first) - int(first) + 1
    share = (slices - 1) / slices
    wire = payload * (2 * share if kind == "ALL_REDUCE" else share)
    source = re.search(r'op_name="([^"]*)"', one.attributes)
    return Collective(BETWEEN, payload, wire, slices, False, 1, source[1] if source else "")


def _group(attributes: str) -> int:
    """Devices that take part in one group of a collective."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        # 'axis' is all of an axis, 'axis':(before)size a part of it.
        used = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[name]) for name, part in used)
    return 1


def trips(computations, instructions, loop: Instruction, condition: str, body: str) -> int | None:
    """How often a loop's body runs: while i < bound, from its start, by its step; None where they are not constants."""
    if found := re.search(r"known_trip_count\D+(\d+)", loop.attributes):
        return int(found[1])
    test = computations.get(condition, {})
    compare = test.get("ROOT")
    if compare is not None and compare.opcode == "fusion":
        compare, test = _through(computations, test, compare)
    if compare is None or compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, bound = (test.get(name) for name in compare.operands)
    bound = _constant(bound)
    index = _index(counter)
    root = computations.get(body, {}).get("ROOT")
    start = instructions.get(loop.operands[0])
    if bound is None or index is None or root is None or start is None:
        return None
    if root.opcode != "tuple" or start.opcode != "tuple":
        return None
    begin = _constant(_source(instructions, start.operands[index]))
    step = _step(computations, computations[body], root.operands[index])
    if begin is None or not step:
        return None
    return max(0, -(-(bound - begin) // step))


def _through(computations, outer, fusion: Instruction):
    """A fused comparison as it would stand outside: (compare, names → instructions of its operands)."""
    inner = computations.get(_called(fusion)[0], {})
    compare = inner.get("ROOT")
    if compare is None or compare.opcode != "compare":
        return None, outer
    known = {}
    for name in compare.operands:
        one = inner.get(name)
        if one is not None and one.opcode == "parameter":
            one = outer.get(fusion.operands[int(one.operands[0])])
        known[name] = one
    return compare, known


def _source(instructions, name: str) -> Instruction | None:
    """The instruction behind copies."""
    one = instructions.get(name)
    while one is not None and one.opcode in ("copy", "bitcast", "convert"):
        one = instructions.get(one.operands[0])
    return one


def _constant(one: Instruction | None) -> int | None:
    if one is None or one.opcode != "constant":
        return None
    text = one.operands[0]
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _index(one: Instruction | None) -> int | None:
    if one is None or one.opcode != "get-tuple-element":
        return None
    return int(re.search(r"index=(\d+)", one.attributes)[1])


def _step(computations, body, name: str) -> int | None:
    """What a loop adds to its counter."""
    one = _source(body, name)
    known = body
    if one is not None and one.opcode == "fusion":
        fusion = one
        inner = computations.get(_called(fusion)[0], {})
        one = inner.get("ROOT")
        known = dict(inner)
        for key, each in inner.items():
            if each.opcode == "parameter" and int(each.operands[0]) < len(fusion.operands):
                known[key] = body.get(fusion.operands[int(each.operands[0])], each)
    if one is None or one.opcode != "add":
        return None
    steps = [_constant(_source(known, operand)) for operand in one.operands]
    found = [step for step in steps if step is not None]
    return found[0] if len(found) == 1 else None
