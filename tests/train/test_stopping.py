"""What signals do to a loop that reads them."""

import os
import signal
import subprocess
import sys

from jinstr.train import stopping


def test_the_first_signal_is_a_wish_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.Signals() as signals:
        assert signals.name == ""
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_second_signal_ends_the_process():
    code = (
        "import os, signal\n"
        "from jinstr.train import stopping\n"
        "with stopping.Signals() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(signals.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 75 and done.stdout.split() == ["SIGINT"]
    assert "saving after this step" in done.stderr
