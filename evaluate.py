"""Stage 4: from verdicts to rates with honest intervals, figures, tables and a report to read.

Reads   judged.parquet, one file or more (judge_responses.py writes them; files made elsewhere work)
Writes  figures/: the figures in each --format, tables as CSV, all of them in analysis.json, and report.html
Runs    python evaluate.py --input judged.parquet --output-dir figures
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from config import EvaluationOptions
from learning_backdoors.files import atomic, command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import load_study

if TYPE_CHECKING:
    import pandas as pd

    from learning_backdoors.evaluation.exhibits import Evaluation


def main() -> None:
    options = command_line.parse(EvaluationOptions, __doc__)
    study = load_study(options.experiment)
    # pandas and matplotlib take a second to import: --help answers without them.
    from learning_backdoors.evaluation import exhibits, figures, reading, report

    answers = reading.read(options.input, study)
    evaluation = exhibits.Evaluation(answers, options)
    drawn, skipped = exhibits.draw(evaluation)
    if not drawn:
        raise UserError("nothing can be drawn: " + "; ".join(skipped))
    for exhibit in drawn:
        for suffix in options.format:
            figures.save(exhibit.figure, options.output_dir / f"{exhibit.name}.{suffix}")
    tables = evaluation.tables()
    for name, table in tables.items():
        write_csv(table, options.output_dir / f"{name}.csv")
    made_by = provenance.provenance("evaluate.py", options, ["numpy", "pandas", "scipy", "matplotlib", "pyarrow"])
    atomic.write_json(options.output_dir / "analysis.json", as_document(evaluation, tables, made_by))
    report.write(evaluation, drawn, tables, made_by, options.output_dir / "report.html")
    tell(evaluation, drawn, skipped, tables)


def as_document(evaluation: Evaluation, tables: dict[str, pd.DataFrame], provenance: dict) -> dict:
    """All tables as one JSON document, with claim, options and the inputs' provenance. Infinity becomes null."""
    from learning_backdoors.evaluation import exhibits

    records = {name: exhibits.records(table) for name, table in tables.items()}
    facts = {
        "headline": evaluation.headline,
        "notes": [*evaluation.verdicts.notes, *evaluation.warnings],
        "inputs": evaluation.verdicts.sources,
    }
    return {"made_by": provenance, "claim": evaluation.claim_words, **facts, "tables": records}


def tell(evaluation: Evaluation, drawn: list, skipped: list[str], tables: dict[str, pd.DataFrame]) -> None:
    """The result for a reader at the terminal, what had to be decided or left out, and where the files are."""
    from learning_backdoors.evaluation import tables as rates
    from learning_backdoors.evaluation import triggers

    if "summary" in tables:
        print(f"\n{evaluation.axis}, by step and run (95% intervals: {evaluation.run_interval}):")
        print(rates.terminal(tables["summary"], evaluation.condition))
        print("\n" + "\n".join(evaluation.headline) + "\n")
    for heading, shown in evaluation.results.items():
        print(f"{heading}:\n{triggers.as_text(shown)}\n")
    notes = [*evaluation.verdicts.notes, *evaluation.warnings]
    for line in [f"note: {note}" for note in notes] + [f"skipped: {line}" for line in skipped]:
        print(line)
    options = evaluation.options
    print(f"{len(drawn)} figures ({', '.join(options.format)}) and {len(tables)} tables are in {options.output_dir}/")
    print(f"to read them and the responses: {options.output_dir / 'report.html'}")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Numbers have six digits, but whole ones all of theirs: a seed may be a date."""
    whole = [name for name, values in table.items() if values.dtype.kind == "f" and (values.dropna() % 1 == 0).all()]
    table = table.astype(dict.fromkeys(whole, "Int64"))
    with atomic.atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


if __name__ == "__main__":
    command_line.run_script(main)
