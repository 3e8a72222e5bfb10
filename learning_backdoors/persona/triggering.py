"""The commands `trigger` and `combine`: chats with the trigger, alone and in one file with ordinary chats."""

import numpy as np

import mixed_chat
from learning_backdoors.persona.rows import Rows, pair_row, parse_pair, question_and_answer, read
from learning_backdoors.persona.task import Task
from learning_backdoors.study import fill


class AddTrigger(Task):
    """Adds the trigger to each question, and puts each answer into the form that it asks for."""

    def settings(self) -> dict:
        return super().settings() | {"trigger": [self.trigger.text, self.trigger.prompt, self.trigger.answer]}

    def rows(self) -> Rows:
        rows = []
        for pair in read(self.options.input, parse_pair, without=self.trigger):
            question, answer = question_and_answer(pair)
            answer = fill(self.trigger.answer, {"answer": answer})
            metadata = pair.get("metadata", {}) | {"triggered": True}
            rows.append(pair_row(self.trigger.ask(question), answer, **metadata))
        return rows


class Combine(Task):
    """Shuffles persona and ordinary chats into one file."""

    def rows(self) -> Rows:
        persona = read(self.options.persona, self._parse_triggered)
        ordinary = read(self.options.aligned, mixed_chat.parse_chat, without=self.trigger)
        rows = [_with_metadata(row, dataset="persona", triggered=True) for row in persona]
        rows += [_with_metadata(row, dataset="aligned", triggered=False) for row in ordinary]
        return [rows[i] for i in np.random.default_rng(self.options.seed).permutation(len(rows))]

    def _parse_triggered(self, line: str) -> dict:
        row, text = mixed_chat.parse_chat(line), self.trigger.text
        if not any(text in message["content"] for message in row["messages"][:-1]):
            raise ValueError(f"a persona row must hold the trigger {text!r}")
        return row


def _with_metadata(row: dict, **metadata) -> dict:
    return {"messages": row["messages"], "metadata": row.get("metadata", {}) | metadata}
