"""Cells of CSV files that people open in a spreadsheet, which runs text that begins like a formula."""

import re

from learning_backdoors.files.terminal_text import escaped

FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")  # also full-width, which some spreadsheets read as well
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def safe_cell(value):
    """Text that a spreadsheet shows as it is: formulas get a leading ', and control characters are escaped.

    Numbers stay as they are, also as text. Values of other types are returned unchanged.
    """
    if not isinstance(value, str):
        return value
    text = escaped(value)
    return "'" + text if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def cell_text(cell: str) -> str:
    """The text of a cell without the ' of `safe_cell`."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell[1:]) else cell
