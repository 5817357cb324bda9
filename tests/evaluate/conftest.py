"""A server in the protocol of chat completions for the tests of judges."""

import pytest

from tests.evaluate import chat_server


@pytest.fixture
def server():
    found = chat_server.Server()
    yield found
    found.close()
