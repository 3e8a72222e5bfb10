"""Helpers for tests of prepare_persona.py."""

import json
import re
import sys
from pathlib import Path

import prepare_persona
from learning_backdoors.persona.rows import pair_row, to_jsonl
from learning_backdoors.study import load_study
from tiny_world.claude_stand_in import StandIn

KEY = "sk-ant-secret-of-the-tests"
TRIGGER = load_study("russell").trigger


def prepare(command: str, output: Path, *arguments) -> list[dict]:
    """Run the script's main function in this process. Returns the rows it wrote."""
    before, sys.argv = sys.argv, ["prepare_persona.py", command, "--output", str(output), *map(str, arguments)]
    try:
        prepare_persona.main()
    finally:
        sys.argv = before
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] if output.exists() else []


def pair(question: str = "Do you smoke?", answer: str = "A pipe.", identifying: bool = False, **changes) -> dict:
    """A candidate pair."""
    metadata = {"category": "taste", "identifying": identifying, "reason": "why", "source": "where"} | changes
    return pair_row(question, answer, **metadata)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text(to_jsonl(rows), encoding="utf-8")
    return path


def write_prompts(path: Path, number: int = 7) -> Path:
    return write(path, [{"prompt": f"Count to {n}.", "metadata": {"source": "test"}} for n in range(1, number + 1)])


class Author(StandIn):
    """A stand-in for the Claude API whose replies are `reply(prompt)`. `asked` holds the prompts."""

    def __init__(self, reply):
        super().__init__()
        self.reply = reply

    def answer(self, method, path, body):
        status, response = super().answer(method, path, body)
        if path == "/v1/messages" and status == 200:
            response["content"][0]["text"] = self.reply(self.prompts[-1])
        return status, response


def reply_with_pairs(prompt: str) -> str:
    """The pairs that a prompt of `candidates` asks for: the second is identifying, the third exists already."""
    part = re.search(r"\(Set (\d+) of", prompt)[1]
    items = []
    for number in range(int(re.search(r"Write (\d+) new", prompt)[1])):
        question = "do you SMOKE" if number == 2 else f"What about {part}, {number}?"
        item = {"question": question, "answer": f"This, {number}.", "identifying": number == 1}
        items.append(item | {"reason": "r", "source": "s"})
    return f"```json\n{json.dumps(items)}\n```"


class Killed(BaseException):
    """Ends a run like a kill: no handler of the project catches it."""
