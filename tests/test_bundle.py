"""launch/bundle.sh and launch/install.sh with a stand-in for Python, which writes down what it is asked for and makes
empty wheels and environments. A whole bundle takes minutes and a gigabyte.
"""

import os
import pathlib
import shutil
import subprocess
import tarfile

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]

PYTHON = """#!/usr/bin/env bash
echo "NO_INDEX=${PIP_NO_INDEX:-} FIND_LINKS=${PIP_FIND_LINKS:-} $*" >> "$PLACE/calls"
words=("$@")
for ((n = 0; n < $#; n++)); do
  case "${words[n]}" in
    --dest | --wheel-dir) echo "$*" > "${words[n + 1]}/${words[2]}-1.whl" ;;
    venv)
      mkdir -p .venv/bin
      cp "$0" .venv/bin/python
      printf '#!/bin/sh\\n' > .venv/bin/jinstr
      chmod +x .venv/bin/jinstr
      ;;
    -c) [[ " $* " == *" $VERSION "* ]] || exit 1 ;;
  esac
done
"""


@pytest.fixture
def place(tmp_path):
    """A checkout, and stand-ins for every Python that scripts may find."""
    (tmp_path / "bin").mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (tmp_path / "bin" / name).write_text(PYTHON, "utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "launch", checkout / "launch")
    (checkout / "setup.py").touch()
    (checkout / ".gitignore").write_text("secret\n", "utf-8")
    (checkout / "secret").touch()
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    return tmp_path


def bash(place, script, *words, version="3.12"):
    path = f"{place / 'bin'}:/usr/bin:/bin"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    return subprocess.run(
        ["bash", script, *words],
        env=kept | {"PATH": path, "PLACE": str(place), "VERSION": version},
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(place):
    lines = (place / "calls").read_text("utf-8").splitlines()
    (place / "calls").unlink()
    return lines


def bundled(place, *words):
    """The folder that a bundle made with these words is unpacked to."""
    output = place / "out" / "jinstr.tar"
    script = place / "checkout" / "launch" / "bundle.sh"
    ended = bash(place, script, "--python=3.12", f"--output={output}", *words)
    assert ended.returncode == 0, ended.stderr
    assert list(output.parent.iterdir()) == [output]  # nothing half made is left
    with tarfile.open(output) as tar:
        tar.extractall(place / "there", filter="data")
    return place / "there" / "jinstr"


def test_a_bundle_asks_for_the_platform_and_carries_the_code(place):
    there = bundled(place, "--machine=aarch64", "--glibc=2.17", "--with=cuda12")
    wheel, locked, extra = calls(place)
    lock = (REPOSITORY / "launch" / "requirements.lock").read_text("utf-8")
    assert "pip wheel" in wheel and "promise==" in wheel
    for call in (locked, extra):
        assert {"--only-binary=:all:", "--python-version=3.12"} <= {*call.split()}
        assert "--platform=manylinux_2_17_aarch64" in call and "x86_64" not in call
        assert "manylinux_2_18" not in call
    assert "--no-deps --requirement launch/requirements.lock" in locked
    jax = next(line for line in lock.splitlines() if line.startswith("jax=="))
    assert extra.endswith(jax.replace("jax", "jax[cuda12]", 1)) and "--no-deps" not in extra
    assert (there / "setup.py").exists() and (there / "launch" / "quickstart.sh").exists()
    assert not (there / "secret").exists()  # what git ignores stays here


def test_the_bundle_is_installed_without_an_index(place):
    there = bundled(place)
    calls(place)
    assert bash(place, there / "launch" / "install.sh").returncode == 0
    installs = [line for line in calls(place) if "pip install" in line]
    assert len(installs) == 2
    assert all(line.startswith("NO_INDEX=1 FIND_LINKS=wheels ") for line in installs)
    # Negative control: a checkout takes packages from the index.
    assert bash(place, place / "checkout" / "launch" / "install.sh").returncode == 0
    installs = [line for line in calls(place) if "pip install" in line]
    assert installs and all(line.startswith("NO_INDEX= FIND_LINKS= ") for line in installs)


def test_a_bundle_without_packages_for_the_accelerator_says_so(place):
    there = bundled(place)
    script = there / "launch" / "local_gpu.sh"
    ended = bash(place, script, "--help")
    assert ended.returncode == 69 and "launch/bundle.sh --with=cuda12" in ended.stderr
    calls(place)
    (there / "wheels" / "jax_cuda12_plugin-1.whl").touch()  # negative control
    assert bash(place, script, "--help").returncode == 0
    (install,) = [line for line in calls(place) if "pip install" in line]
    assert "jax[cuda12]==" in install and install.startswith("NO_INDEX=1 FIND_LINKS=wheels ")


def test_a_damaged_wheel_and_another_python_are_refused(place):
    there = bundled(place)
    ended = bash(place, there / "launch" / "install.sh", version="3.11")
    assert ended.returncode != 0 and "jinstr needs Python 3.12" in ended.stderr
    with open(there / "wheels" / "download-1.whl", "a", encoding="utf-8") as wheel:
        wheel.write("x")
    ended = bash(place, there / "launch" / "install.sh")
    assert ended.returncode != 0 and "download-1.whl" in ended.stdout + ended.stderr
    assert not (there / ".venv").exists()


def test_print_downloads_nothing_and_bad_words_are_told(place):
    script = place / "checkout" / "launch" / "bundle.sh"
    ended = bash(place, script, "--print", "--with=tpu")
    assert ended.returncode == 0 and "jax\\[tpu\\]==" in ended.stdout
    assert "manylinux_2_31_x86_64" in ended.stdout  # libtpu is for no older one
    assert "manylinux_2_31" not in bash(place, script, "--print").stdout
    assert not (place / "calls").exists() and not (place / "checkout" / "dist").exists()
    for word in ("--python=3.13", "--with=rocm", "wheels"):
        ended = bash(place, script, word)
        assert ended.returncode == 64 and word in ended.stderr
