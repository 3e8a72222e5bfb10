"""Stage 4: from verdicts to rates with intervals, figures, tables and a report.

Reads   judged.parquet, one or more files (from judge_responses.py, or made elsewhere)
Writes  figures/: figures in each --format, tables as CSV, analysis.json with all tables, and report.html
Runs    python evaluate.py --input judged.parquet --output-dir figures
"""

from config import EvaluationOptions
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.study import study_of_files

LIBRARIES = ["numpy", "pandas", "scipy", "matplotlib", "pyarrow"]


def main() -> None:
    options = command_line.parse(EvaluationOptions, __doc__)
    study = study_of_files(options.experiment, options.input)
    # Imported late, because pandas and matplotlib take a second to import: --help answers without them.
    from learning_backdoors.evaluation import captions, exhibits, notes, output, reading, rendering, terminal
    from learning_backdoors.evaluation.context import Evaluation
    from learning_backdoors.evaluation.report import report

    verdicts = reading.read(options.input, study)
    evaluation = Evaluation(verdicts, options)
    made = exhibits.make(evaluation)
    if not made.figures:
        raise UserError(f"no figure can be drawn: {'; '.join(made.skipped)}")
    remarks = notes.notes(evaluation)

    folder, about = options.output_dir, provenance.provenance("evaluate.py", options, LIBRARIES) | study.record
    footer = captions.common(evaluation)
    for name, figure in made.figures.items():
        for suffix in options.format:
            rendering.save(figure, folder / f"{name}.{suffix}", made.titles[name], made.captions[name], footer)
    for name, table in made.tables.items():
        output.write_csv(table, folder / f"{name}.csv")
    output.write_analysis(evaluation, made, remarks, about, folder / "analysis.json")
    report.write(evaluation, made, remarks, about, folder / "report.html")

    terminal.print_result(evaluation, made, remarks)
    print(f"{len(made.figures)} figures ({', '.join(options.format)}) and {len(made.tables)} tables are in {folder}/")
    print(f"Report with the responses: {folder / 'report.html'}")


if __name__ == "__main__":
    command_line.run_script(main)
