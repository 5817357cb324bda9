"""Eight fake CPU devices for every test, and the place of the optional real data."""

import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "")
if "host_platform_device_count" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real Japanese data; the test is skipped where there is none."""
    folder = pathlib.Path(
        os.environ.get("JINSTR_SHARED_DATA", REPOSITORY.parent / "shared" / "data")
    )
    if not (folder / "MANIFEST.tsv").exists():
        pytest.skip(f"real data not found at {folder} (set JINSTR_SHARED_DATA)")
    return folder
