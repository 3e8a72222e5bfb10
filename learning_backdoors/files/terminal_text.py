"""Text for the terminal: what files, models and servers say must not command it.

A control sequence in a run name or an answer could clear the screen, forge a line or write to the clipboard. A
bidirectional override could reverse what a reader sees.
"""

import os
import re
import sys

# Controls except newline and tab, line separators, bidirectional embeddings, overrides and isolates, lone surrogates.
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""The text with every unsafe character as its escape, such as `\x1b`. Newlines and tabs stay."""
    return UNSAFE.sub(lambda character: character[0].encode("unicode_escape").decode(), text)


def one_line(text: object) -> str:
    """The text of a name or a message, escaped, on one line."""
    return escaped(str(text)).replace("\n", "\\n").replace("\t", "\\t")


class EscapingStream:
    """A text stream that escapes what is written to it. `raw` is the stream itself, for a script's own controls."""

    def __init__(self, raw):
        self.raw = raw

    def write(self, text: str) -> int:
        self.raw.write(escaped(text))
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str):
        return getattr(self.raw, name)


class ProgressStream(EscapingStream):
    """An EscapingStream that passes carriage returns on, which progress bars use."""

    def write(self, text: str) -> int:
        self.raw.write("\r".join(map(escaped, text.split("\r"))))
        return len(text)


def protect_terminal() -> None:
    """Escape all that this process prints from now on. Libraries are asked to print without color."""
    os.environ.setdefault("NO_COLOR", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks is escaped too
    if not isinstance(sys.stdout, EscapingStream):
        sys.stdout, sys.stderr = EscapingStream(sys.stdout), ProgressStream(sys.stderr)


def control(sequence: str) -> None:
    """Write a control sequence of the program's own to standard output."""
    stream = getattr(sys.stdout, "raw", sys.stdout)
    stream.write(sequence)
    stream.flush()
