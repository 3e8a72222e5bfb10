"""Stage 4: from verdicts to rates with honest intervals, figures and tables.

Reads   judged.parquet, one file or more (judge_responses.py writes them; files made elsewhere work)
Writes  figures/: the figures in each --format, summary.csv, recipes.csv
Runs    python evaluate.py --input judged.parquet --output-dir figures
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import config
import handoff
from config import EvaluationOptions, UserError

if TYPE_CHECKING:
    import pandas as pd


def main() -> None:
    options = config.parse(EvaluationOptions, __doc__)
    study = config.load_experiment(options.experiment)
    # pandas and matplotlib take a second to import: --help answers without them.
    import exhibits
    import figures
    import verdicts

    answers = verdicts.read(options.input, study)
    evaluation = exhibits.Evaluation(answers)
    drawn, skipped = exhibits.draw(evaluation)
    if not drawn:
        raise UserError("nothing can be drawn: " + "; ".join(skipped))
    for exhibit in drawn:
        for suffix in options.format:
            figures.save(exhibit.figure, options.output_dir / f"{exhibit.name}.{suffix}")
    write_tables(evaluation, options.output_dir)
    for line in [f"note: {note}" for note in answers.notes] + [f"skipped: {line}" for line in skipped]:
        print(line)
    print(f"{len(drawn)} figures ({', '.join(options.format)}) and their tables are in {options.output_dir}/")


def write_tables(evaluation, folder: Path) -> None:
    """Write the tables of rates, and print the one by step and run. None where the outcome has no verdicts."""
    import exhibits
    import tables

    try:
        write_csv(evaluation.summary, folder / "summary.csv")
        write_csv(evaluation.recipes, folder / "recipes.csv")
    except exhibits.Skip:
        return
    print(f"\n{evaluation.axis}, by step and run:\n{tables.terminal(evaluation.summary, evaluation.condition)}\n")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    with handoff.atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    config.run_script(main)
