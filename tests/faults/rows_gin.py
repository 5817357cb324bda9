"""Rows about settings."""

from tests.faults import rig as rig_lib


def _misspelt(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    ended = rig.train("misspelt", "NUM_STEPZ=3")
    seen = "NUM_STEPS" in ended.text
    return f"exit {ended.status}, names NUM_STEPS: {seen}", ended.status == 78 and seen


ROWS = [
    rig_lib.Row(
        number="40",
        injected="a misspelt setting",
        promised="exit 78 with a did-you-mean",
        measure=_misspelt,
        in_ci=True,
    )
]
