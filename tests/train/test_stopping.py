"""What signals do to a run, by its phase."""

import os
import signal
import subprocess
import sys

import pytest

from jinstr import errors
from jinstr.train import stopping


def test_the_first_signal_is_a_wish_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping.Signals() as signals, signals.during("step"):
        assert signals.name == "" and stopping.current() is signals
        stopping.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.name == "SIGTERM"
        stopping.check()  # only an evaluation is left in the middle
        with signals.during("evaluate"), pytest.raises(stopping.Asked):
            stopping.check()
    assert signal.getsignal(signal.SIGTERM) is before and stopping.current() is not signals


def test_before_the_first_step_nothing_is_waited_for():
    with stopping.Signals(), pytest.raises(errors.PreemptedError, match="nothing is lost"):
        os.kill(os.getpid(), signal.SIGTERM)


def python(code):
    code = "import os, signal, time\nfrom jinstr.train import stopping\n" + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_second_signal_ends_the_process():
    done = python(
        "with stopping.Signals() as signals, signals.during('step'):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print(signals.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(5)\n"
        "    print('still here', flush=True)\n"
    )
    assert done.returncode == 75 and done.stdout.split() == ["SIGINT"]
    assert "saving and ending" in done.stderr


def test_a_compilation_is_cut_and_a_step_is_not():
    for phase, status in (("compile", 75), ("step", 0)):
        code = f"with stopping.Signals() as signals, signals.during({phase!r}):\n"
        code += (
            "    import threading\n    threading.Timer(0.5, os.kill, (os.getpid(), 15)).start()\n"
        )
        # CDLL lets other threads run, as XLA does.
        code += "    import ctypes\n    ctypes.CDLL(None).usleep(900_000)\n    ctypes.CDLL(None).usleep(900_000)\n"
        code += "    ctypes.CDLL(None).usleep(900_000)\n"
        done = python(code)
        assert done.returncode == status, done.stderr


def test_a_compilation_that_begins_after_the_signal_is_cut_too():
    done = python(
        "import ctypes\n"
        "with stopping.Signals() as signals, signals.during('step'):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    with signals.during('compile'):\n"
        "        ctypes.CDLL(None).usleep(900_000)\n"
        "        ctypes.CDLL(None).usleep(900_000)\n"
    )
    assert done.returncode == 75 and "nothing is lost" in done.stderr, done.stderr


def test_each_signal_asks_to_stop():
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2"):
        done = python(
            # As a terminal has it: the tests may run in the background or under nohup.
            f"signal.signal(signal.{name}, signal.SIG_DFL)\n"
            "with stopping.Signals() as signals, signals.during('step'):\n"
            f"    os.kill(os.getpid(), signal.{name})\n"
            "    print(signals.name)\n"
        )
        assert done.stdout.strip() == name, done.stderr
    done = python(  # negative control
        "with stopping.Signals() as signals, signals.during('step'):\n"
        "    os.kill(os.getpid(), signal.SIGALRM)\n"
    )
    assert done.returncode == -14


def test_nohup_is_respected():
    done = python(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stopping.Signals() as signals, signals.during('step'):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print(repr(signals.name))\n"
    )
    assert done.stdout.strip() == "''", done.stderr
