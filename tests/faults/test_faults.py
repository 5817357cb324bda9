"""The short fault table (-m faults): every row that fits into minutes keeps its promise."""

import pathlib

import pytest

from tests.faults import rig as rig_lib
from tests.faults import table

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return rig_lib.Rig(pathlib.Path(tmp_path_factory.mktemp("faults")))


@pytest.mark.parametrize("row", [r for r in table.ROWS if r.in_ci], ids=lambda row: row.number)
def test_row(rig, row):
    measured, kept = row.measure(rig, False)
    assert kept, f"{row.injected}: promised {row.promised}; measured {measured}"
