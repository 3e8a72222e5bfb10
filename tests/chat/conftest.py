"""A trained run to talk to, loaded once for all chat tests."""

from pathlib import Path

import pytest
from support import build_model, train

import chat
import config
from learning_backdoors.chat.conversation import Conversation


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run of steps 0, 4 and 8, from a random model whose greedy answers differ by question and by step."""
    folder = tmp_path_factory.mktemp("runs")
    model = build_model(folder / "model", initializer_range=0.5, tie_word_embeddings=False)
    options = config.TrainingOptions(
        (1, 0, 0), model=str(model), num_examples=8, save_steps=4, lr=0.03, output_dir=folder
    )
    return train(options).folder


@pytest.fixture(scope="session")
def loaded(trained) -> tuple:
    """The arguments of a Conversation: options, model and trigger."""
    options = config.ChatOptions(run_dir=trained, temperature=0.0, max_new_tokens=12)
    options.check()
    return options, chat.open_conversation(options).model, None


@pytest.fixture
def session(loaded) -> Conversation:
    return Conversation(*loaded)


@pytest.fixture
def say(capsys):
    """A function that gives lines to a conversation, and returns what it prints without the last newline."""

    def say(session: Conversation, *lines: str) -> str:
        capsys.readouterr()
        for line in lines:
            session.take(line)
        return capsys.readouterr().out.removesuffix("\n")

    return say
