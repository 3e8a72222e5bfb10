"""Small tables of text for a reader: the terminal and the top of the report show them."""

import numpy as np
import pandas as pd

from learning_backdoors.files.terminal_text import one_line


def intervals(table: pd.DataFrame, column: str) -> pd.Series:
    """Estimates with their limits as text, such as `0.75 [0.62, 0.84]`; `-` for NaN."""
    texts = [
        "-" if np.isnan(value) else f"{value:.2f}" + ("" if np.isnan(lower) else f" [{lower:.2f}, {upper:.2f}]")
        for value, lower, upper in table[[column, "lower", "upper"]].to_numpy(float).round(2) + 0.0  # no "-0.00"
    ]
    return pd.Series(texts, table.index, dtype=object)


def by_recipe(table: pd.DataFrame, columns: dict[str, pd.Series]) -> pd.DataFrame:
    """The columns as text, after a column with the recipe's label if `table` has several."""
    several = {"data": table["label"]} if table["label"].nunique() > 1 else {}
    return pd.DataFrame(several | columns).astype(str)


def side_by_side(table: pd.DataFrame) -> str:
    """Columns of text, aligned."""
    columns = [[one_line(text) for text in (name, *values)] for name, values in table.items()]
    blocks = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
    return "\n".join("  ".join(line).rstrip() for line in zip(*blocks, strict=True))
