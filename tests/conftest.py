"""Eight fake CPU devices for every test, programs compiled in a hurry, and the place of the optional real data.

LLVM's optimisations are left out: most of the suite's time was compiling models of a few thousand parameters. What
users run, compiled as they run it, is in the children of tests/train/test_resume.py, which start without these flags.
"""

import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "")
if "host_platform_device_count" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
if "backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += (
        " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest  # noqa: E402

from jinstr.parallel import mesh  # noqa: E402

mesh.make_room_for_fake_devices()

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
