"""How long a step may take on chips that are not there: an interval, with what bounds it. Never measured."""

from __future__ import annotations

from typing import NamedTuple

from jinstr.parallel import chips as chips_lib
from jinstr.train import collectives, costs

ATTENTION_SHARE = 0.5  # of the peak that attention kernels reach; assumed, not measured
GPU_SHARE = 0.4  # of the peak that whole steps reach on GPUs (published: 0.33 to 0.49 for models of 1 to 13 G)


class Estimate(NamedTuple):
    """Seconds of one step; MFU = model FLOPs (train.flops) over the peak."""

    products: float  # matrix products at the peak
    attention: float  # attention at the peak
    waiting: float  # wires, of collectives that nothing runs beside
    hidden: float  # wires, of those that may run beside computation
    host: float  # between the chip and its host, which may run beside computation
    lowest: float
    highest: float
    bound_by: str
    utilisation: tuple[float, float]  # at the highest and the lowest time


def wire_seconds(topology: chips_lib.Topology, found: collectives.Found) -> tuple[float, float]:
    """(waiting, hidden): bytes over the links of the axes that a group spans, both ways at once."""
    chip = chips_lib.CHIPS[topology.chip]
    seconds = [0.0, 0.0]
    for one in found.each:
        speed = topology.axes_of(one.devices) * chip.link
        if one.kind == collectives.BETWEEN:
            speed = chips_lib.BETWEEN_SLICES
        seconds[one.hidden] += one.wire * one.times / speed
    return seconds[0], seconds[1]


def of_compiled(
    topology: chips_lib.Topology, found: collectives.Found, work: costs.Work
) -> Estimate:
    """From the compiler's program. The lowest: all at its peak, wires beside it; the highest: the compiler's cycles,
    attention at half the peak, and all that is not hidden one after the other.

    The one published step of this kind (MaxText's 32B on v5e-256, 12.1 s) lies at 1.20 times such a lowest and 0.77
    times such a highest time.
    """
    chip = chips_lib.CHIPS[topology.chip]
    waiting, hidden = wire_seconds(topology, found)
    products, attention = work.products / chip.flops, work.attention / chip.flops
    serial = max(found.cycles / chip.hertz, products) + attention / ATTENTION_SHARE + waiting
    return _estimate(chip, work, products, attention, waiting, hidden, serial)


def by_formula(topology: chips_lib.Topology, wires: dict[str, float], work: costs.Work) -> Estimate:
    """Without a compiler: the highest time is that of GPU_SHARE of the peak, and wires after it."""
    chip = chips_lib.CHIPS[topology.chip]
    axes = topology.axes_of(topology.size) if topology.kind == "tpu" else 1
    between = wires.get(costs.BETWEEN, 0.0)
    waiting = (sum(wires.values()) - between) / (
        axes * chip.link
    ) + between / chips_lib.BETWEEN_SLICES
    products, attention = work.products / chip.flops, work.attention / chip.flops
    serial = (products + attention) / GPU_SHARE + waiting
    return _estimate(chip, work, products, attention, waiting, 0.0, serial)


def _estimate(chip, work, products, attention, waiting, hidden, serial) -> Estimate:
    computing, wires, host = products + attention, waiting + hidden, work.host / chips_lib.HOST
    names = {"matrix products": computing, "the wires": wires, "the way to the host": host}
    bound_by = max(names, key=names.get)
    lowest, serial = names[bound_by], serial + host
    ideal = work.model / chip.flops
    return Estimate(
        products, attention, waiting, hidden, host, lowest, serial, bound_by,
        (ideal / serial, ideal / lowest),
    )  # fmt: skip
