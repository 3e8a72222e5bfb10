"""Stage 3: every judge of the study reads every response, through Claude or another Messages API.

Reads   a Parquet file of responses (generate_responses.py), and the API key from ANTHROPIC_API_KEY or .env.
Writes  the same rows with four more columns per judge: verdict, reply, status and reason; and OUTPUT.costs.csv.
        Replies are stored in OUTPUT.verdicts.sqlite as they arrive. The same command continues after an interruption
        and pays for no verdict twice.

    python judge_responses.py --input responses.parquet --output judged.parquet
"""

import learning_backdoors  # noqa: F401  (first, because it handles Ctrl-C while libraries are imported)

# isort: split
import contextlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from config import JudgingOptions
from learning_backdoors.files import command_line, parquet
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.judging import costs, judged_file, quality
from learning_backdoors.judging.api.asking import ask_all
from learning_backdoors.judging.api.client import host_of
from learning_backdoors.judging.api.models import ServedModel, price_of, request_settings
from learning_backdoors.judging.api.pacing import CapReached, Limits
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.judging.prompts import PromptsOfFile
from learning_backdoors.study import Judge, Study, study_of_files


def main() -> None:
    options = command_line.parse(JudgingOptions, __doc__)
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps freed memory: 100 MB for 50,000 responses
    study = study_of_files(options.experiment, [options.input])
    judges = chosen_judges(study, options.judges)
    if options.sample_for_labels:
        return sample_for_labels(options, study, judges)
    if options.input.resolve() == options.output.resolve():
        raise UserError(f"--input and --output are the same file, {options.input}: choose another --output")
    model = judge_model(options)
    labels = quality.read_labels(options.labels, judges) if options.labels else {}
    table, provenance = read_input(options.input, study, judges)
    settings = judged_file.settings_of_verdicts(options.input, study, judges, model)

    store_path = options.store or options.output.with_name(options.output.name + ".verdicts.sqlite")
    with lock(options.output), lock(store_path):
        earlier = None if options.existing == "overwrite" else judged_file.earlier_record(options.output, settings)
        prompts = PromptsOfFile(table, study, judges, model, options.repeat)
        if table.num_rows and not prompts.by_key:
            raise UserError(f"{options.input} has no question that the study {study.name!r} puts to these judges")
        with contextlib.closing(CallStore(store_path, shared=options.store is not None)) as store:
            if earlier:
                judged_file.adopt_verdicts(options.output, earlier, prompts, store)
            if options.dry_run:
                return costs.print_estimate(prompts, store, options.timeout)
            if not request_verdicts(options, prompts, store):
                return
            agreement = quality.agreement_of(prompts, store, labels)
            record = judged_file.judging_record(options, prompts, settings, costs.total_spent(prompts, store))
            footer = provenance | study.record | {"judging": record | agreement}
            counts = judged_file.write_judged(options.output, prompts, store, footer)
            report_verdicts(options.output, counts, prompts, store)
            quality.print_agreement(agreement)


def chosen_judges(study: Study, names: Sequence[str] | None) -> tuple[Judge, ...]:
    judges = {judge.name: judge for judge in study.judges}
    for name in names or ():
        if name not in judges:
            raise UserError(f"the study {study.name!r} has no judge {name!r}; its judges are: {', '.join(judges)}")
    return tuple(judge for judge in study.judges if names is None or judge.name in names)


def judge_model(options: JudgingOptions) -> ServedModel:
    host = host_of(options.base_url)
    sent = request_settings(options.model, options.thinking, options.max_tokens)
    model = ServedModel(options.model, host, sent, price_of(options.model, host, options.price, options.prices))
    if options.max_cost:
        model.require_price()
    return model


def read_input(path: Path, study: Study, judges: Sequence[Judge]) -> tuple[pa.Table, dict]:
    """The responses and their provenance. Rows that do not name their study are of `study`."""
    table, provenance = parquet.read_responses(path)
    experiment = table["experiment"].fill_null(study.name)
    table = table.set_column(table.column_names.index("experiment"), "experiment", experiment)
    for name in judged_file.judge_schema(judges).names:
        if name in table.column_names:
            raise UserError(f"{path} has a column {name!r} already: choose other judges with --judges")
    return table, provenance


def sample_for_labels(options: JudgingOptions, study: Study, judges: Sequence[Judge]) -> None:
    table, _ = parquet.read_responses(options.input, parquet.REQUIRED)
    size, path = int(options.sample_for_labels[0]), Path(options.sample_for_labels[1])
    answers = zip(table["question"].to_pylist(), map(study.without_trigger, table["response"].to_pylist()), strict=True)
    written = quality.write_sheet(path, answers, judges, size)
    print(f"{written} answers to label in {path}: fill in the judges' columns, then use --labels {path}")


def request_verdicts(options: JudgingOptions, prompts: PromptsOfFile, store: CallStore) -> bool:
    """Ask for the missing verdicts. Returns whether the output can be written: each prompt has a verdict or has failed.

    Costs are reported in any case, also after Ctrl-C or an error.
    """
    model, left = prompts.model, len(prompts.keys_left(store))
    if left:
        print(f"{left:,} of {len(prompts.by_key):,} verdicts to request from {model.name} at {model.host}", flush=True)
    limits = Limits.from_options(options, spent=costs.total_spent(prompts, store).dollars)
    complete = False
    try:
        ask_all(prompts.by_key.values(), model, store, limits, batch=options.batch, title="judging", unit="verdict")
        complete = store.pending_keys().isdisjoint(prompts.keys_left(store))
    except CapReached:
        print(f"--max-cost ${options.max_cost:g} is reached: the same command with a higher one continues")
    finally:
        costs.report_costs(prompts, store, options.output)
        if not complete:
            report_left(options.output, prompts, store)
    return complete


def report_left(output: Path, prompts: PromptsOfFile, store: CallStore) -> None:
    state = "not changed" if output.exists() else "not written"
    print(f"{len(prompts.keys_left(store)):,} verdicts still to request; {output} was {state}")
    if in_batches := store.pending_keys().intersection(prompts.keys_left(store)):
        print(f"{len(in_batches):,} of them are in unfinished batches: the same command with --batch collects them")


def report_verdicts(output: Path, counts: Counter, prompts: PromptsOfFile, store: CallStore) -> None:
    """Print how many verdicts there are, and how many are missing, by judge and status, with the commonest reason."""
    missing: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for (judge, status, reason), count in counts.items():
        if status != "ok":
            missing[judge, status][reason] += count
    total_missing = sum(reasons.total() for reasons in missing.values())
    print(f"{counts.total() - total_missing:,} verdicts in {output}, {total_missing:,} missing")
    for (judge, status), reasons in sorted(missing.items()):
        reason, count = reasons.most_common(1)[0]
        print(f"  {judge}: {reasons.total():,} {status} ({count:,} of them: {one_line(reason)[:200]})")
    if missing and prompts.keys_left(store):
        print("run the same command again to request those once more")
    elif missing:
        print("their replies are stored, but none is a valid verdict in the current study")


if __name__ == "__main__":
    command_line.run_script(main)
