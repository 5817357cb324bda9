"""The watchdog: patient by phase, and at its end it says where everything stands."""

import subprocess
import sys

from jinstr.train import watchdog


def test_how_long_it_waits():
    watch = watchdog.Watchdog()
    assert watch.allowed() == watchdog.COMPILE_SECONDS
    watch.beat("step")
    assert watch.allowed() == watchdog.STEP_SECONDS
    watch._seconds = [30.0, 31.0, 500.0]  # ten times the median, not of the slowest
    assert watch.allowed() == 310.0
    watch.beat("save")
    assert watch.allowed() == watchdog.SAVE_SECONDS
    assert watchdog.Watchdog(7.0).allowed() == 7.0


def run(code):
    code = "import time\nfrom jinstr.train import watchdog\n" + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_stalled_run_ends_with_124_and_stacks():
    stalled = "def waiting_for_a_peer():\n    time.sleep(30)\n"
    done = run(
        stalled + "with watchdog.Watchdog(0.5) as watch:\n    watch.beat('step')\n"
        "    waiting_for_a_peer()\n"
    )
    assert done.returncode == 124
    assert "phase 'step'" in done.stderr and "waiting_for_a_peer" in done.stderr


def test_progress_of_any_kind_keeps_it_quiet():
    """Negative control: as long a run, with beats."""
    done = run(
        "with watchdog.Watchdog(0.5):\n    for _ in range(15):\n"
        "        time.sleep(0.1)\n        watchdog.alive()\n"
    )
    assert done.returncode == 0, done.stderr
