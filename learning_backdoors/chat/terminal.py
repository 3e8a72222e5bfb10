"""The terminal: reading lines, stopping answers with Ctrl-C, and views of answers while they grow."""

import contextlib
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

from learning_backdoors.files.terminal_text import control, escaped
from learning_backdoors.generation.engines.protocol import Response

MIN_COLUMNS = 80  # of a terminal that shows two answers side by side


def read_line(prompt: str) -> str:
    """The next line. Lines from a pipe are printed after the prompt, so that the output reads like a session."""
    if sys.stdin.isatty():
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    print(prompt + line.rstrip("\n"), flush=True)
    return line.rstrip("\n")


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed in the block. A second Ctrl-C interrupts at once.

    An exception could strike while adapters are replaced, and leave half an adapter on the base model.
    """
    pressed = []

    def press(*_) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    earlier = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, earlier)


def column_width() -> int | None:
    """The width of each of two columns; None if the output is not a terminal or the terminal is too narrow."""
    columns = shutil.get_terminal_size().columns
    return (columns - 3) // 2 if sys.stdout.isatty() and columns >= MIN_COLUMNS else None


def printable(response: Response) -> str:
    """A response's text, with control characters escaped.

    For a growing response, only the text that will not change: half a character, or a space that the decoder may
    remove, is held back.
    """
    text = escaped(response.text)
    if response.finish_reason == "length":
        return f"{text.rstrip()}\n(cut off at {response.tokens} tokens)"
    if response.finish_reason:
        return text.rstrip() or "(an empty answer)"
    return text.rstrip("\ufffd \n\t")


# ---- views: `show` is called with all responses each time they have grown, and `end` when no more calls follow ----


class OneByOne:
    """Answers one below the other. Each is printed as it grows, from the text that it has when its turn comes."""

    def __init__(self, name: str | None):
        """name: the voice, for headings; None for no headings."""
        self.name, self.index, self.text = name, 0, None

    def show(self, responses: list[Response]) -> None:
        for response in responses[self.index :]:
            if self.text is None:
                self.text = ""
                number = f", {self.index + 1} of {len(responses)}" if len(responses) > 1 else ""
                if self.name:
                    print(f"[{self.name}{number}]")
            text = printable(response)
            if text.startswith(self.text):
                print(text[len(self.text) :], end="", flush=True)
                self.text = text
            elif response.finish_reason:  # the decoder has changed earlier text
                print("\n" + text, end="")
            if not response.finish_reason:
                return
            self.index += 1
            self.end()

    def end(self) -> None:
        if self.text is not None:
            print(flush=True)
        self.text = None


class Count:
    """The number of tokens so far, for answers that will be printed in columns."""

    def __init__(self, name: str):
        self.name = name

    def show(self, responses: list[Response]) -> None:
        control("\r")
        print(f"{self.name}: {sum(response.tokens for response in responses)} tokens", end="", flush=True)

    def end(self) -> None:
        control("\r\033[K")


def print_columns(names: Sequence[str], columns: Sequence[list[Response]], width: int) -> None:
    """Print the answers of two voices side by side, pair by pair. A voice that was stopped may have none."""
    print(f"{names[0]:{width}} | {names[1]}")
    for pair in zip_longest(*columns):
        print("-" * width + " | " + "-" * width)
        texts = [wrap(printable(response), width) if response else [] for response in pair]
        for left, right in zip_longest(*texts, fillvalue=""):
            print(f"{left:{width}} | {right}".rstrip())


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text, each of at most `width` characters."""
    lines = (textwrap.wrap(line, width, replace_whitespace=False) for line in text.split("\n"))
    return [part for line in lines for part in line or [""]]
