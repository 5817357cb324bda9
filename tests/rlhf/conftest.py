"""Fixtures of the tests of rewards: a module of functions that can be imported, a server, open rewards."""

import textwrap

import pytest

from jinstr.rlhf import rewards
from tests.rlhf import asking


@pytest.fixture(scope="session")
def functions(tmp_path_factory):
    """The folder of user_rewards.py, and of modules that cannot be imported."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "user_rewards.py").write_text(textwrap.dedent(asking.FUNCTIONS), "utf-8")
    (folder / "broken_rewards.py").write_text("def f(:\n", "utf-8")
    (folder / "ending_rewards.py").write_text("import os\nos._exit(7)\n", "utf-8")
    return folder


@pytest.fixture
def on_path(functions, monkeypatch):
    monkeypatch.syspath_prepend(str(functions))


@pytest.fixture
def server():
    server = asking.Server()
    yield server
    server.close()


@pytest.fixture
def opened():
    """A function: settings → open rewards, closed at the end of the test."""
    everything = []

    def open_rewards(reward, module="", **settings):
        settings = {"workers": 2, "timeout": 20.0, "backoff": 0.01} | settings
        found = rewards.open_rewards(rewards.RewardConfig(reward=reward, **settings), module)
        everything.extend(found)
        return found

    yield open_rewards
    rewards.close(everything)
