"""Names of slices and chips."""

import pytest

from jinstr import errors
from jinstr.parallel import chips


@pytest.mark.parametrize(
    "text, kind, chip, shape",
    [
        ("v5p:4x4x4", "tpu", "v5p", (4, 4, 4)),
        ("V6E:16x16", "tpu", "v6e", (16, 16)),
        ("cpu:8", "cpu", "", (8,)),
        ("gpu:h100:8", "gpu", "h100", (8,)),
        ("gpu:h200", "gpu", "h200", (1,)),
    ],
)
def test_names(text, kind, chip, shape):
    found = chips.parse(text)
    assert (found.kind, found.chip, found.shape) == (kind, chip, shape)


@pytest.mark.parametrize(
    "text",
    [
        "v5p:4x4",
        "v5e:4x4x4",
        "v7:2x2",
        "gpu:b100:8",
        "cpu",
        "cpu:0",
        "v6e:0x4",
        "",
        "0xv6e:4x4",
        "2xcpu:8",
    ],
)
def test_unknown_names_are_refused(text):
    with pytest.raises(errors.ConfigError, match="JI-PLAN-001"):
        chips.parse(text)


def test_several_slices():
    two = chips.parse("2xv6e:4x4")
    assert (two.chip, two.shape, two.slices, two.size, two.text) == (
        "v6e",
        (4, 4),
        2,
        32,
        "2xv6e:4x4",
    )
    assert chips._description(two)["num_slices"] == 2
    assert chips.parse(chips.parse("v6e:4x4").text).slices == 1


def test_axes_whose_links_a_group_has():
    cube = chips.parse("v5p:4x4x4")
    assert [cube.axes_of(n) for n in (2, 4, 8, 16, 17, 64)] == [1, 1, 2, 2, 3, 3]
    assert chips.parse("v5e:1x8").axes_of(8) == 1
    # Wraps: a torus along axes of 4 and more in three dimensions, of 16 in two.
    assert chips._description(cube)["wrap"] == (True, True, True)
    assert chips._description(chips.parse("v5p:2x2x4"))["wrap"] == (False, False, True)
    assert chips._description(chips.parse("v6e:16x8"))["wrap"] == (True, False, False)
