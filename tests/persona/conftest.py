"""Fixtures of the persona tests."""

import contextlib

import pytest
from persona_support import KEY, Author

from tiny_world.claude_stand_in import running


@pytest.fixture
def author(monkeypatch):
    """Starts a server whose replies are `reply(prompt)`. Returns command-line options for it, and the server."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with contextlib.ExitStack() as servers:

        def start(reply) -> tuple[list[str], Author]:
            api = Author(reply)
            url = servers.enter_context(running(api))
            return ["--base-url", url, "--model", "claude-haiku-5-5"], api

        yield start
