"""Stage 3: every judge of the study reads every response, through Claude or another Messages API.

Reads   a Parquet file of responses (generate_responses.py), and the API key from ANTHROPIC_API_KEY or .env.
Writes  the same rows with three more columns per judge: verdict, reply and status; and OUTPUT.costs.csv.
        Replies are stored in OUTPUT.verdicts.sqlite as they arrive. The same command continues after an interruption
        and pays for no verdict twice.

    python judge_responses.py --input responses.parquet --output judged.parquet
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from config import JudgingOptions
from learning_backdoors.files import command_line, parquet
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging import costs, judged_file, quality
from learning_backdoors.judging.api.asking import ask_all
from learning_backdoors.judging.api.client import host_of
from learning_backdoors.judging.api.models import ServedModel, price_of, settings_for
from learning_backdoors.judging.api.pacing import CapReached, Limits
from learning_backdoors.judging.api.store import CallStore, Spent
from learning_backdoors.judging.prompts import JudgePrompts
from learning_backdoors.study import Judge, Study, load_study


def main() -> None:
    options = command_line.parse(JudgingOptions, __doc__)
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps freed memory: 100 MB for 50,000 responses
    study = load_study(options.experiment)
    judges = chosen_judges(study, options.judges)
    if options.sample_for_labels:
        return sample_for_labels(options, study, judges)
    model = judge_model(options)
    labels = quality.read_labels(options.labels, judges) if options.labels else {}
    table, provenance = read_input(options.input, study, judges)
    if options.input.resolve() == options.output.resolve():
        raise UserError(f"--input and --output are the same file, {options.input}: choose another --output")

    store_path = options.store or options.output.with_name(options.output.name + ".verdicts.sqlite")
    settings = judged_file.configuration(options.input, study, judges, model)
    with lock(options.output), lock(store_path):
        existing = None if options.existing == "overwrite" else judged_file.open_existing(options.output, settings)
        prompts = JudgePrompts(table, study, judges, model, options.repeat)
        if table.num_rows and not prompts.wanted:
            raise UserError(f"{options.input} has no question that the study {study.name!r} puts to these judges")
        with contextlib.closing(CallStore(store_path)) as store:
            if existing:
                judged_file.adopt_verdicts(options.output, existing, prompts, store)
            if options.dry_run:
                return costs.print_estimate(prompts, store, options.timeout)
            total = request_verdicts(options, prompts, store)
            if total is None:  # not complete yet
                return
            agreement = quality.agreement_of(prompts, store, labels)
            record = judged_file.judging_record(options, prompts, settings, total) | agreement
            counts = judged_file.write_judged(options.output, prompts, store, provenance | {"judging": record})
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
    settings = settings_for(options.model, options.thinking, options.max_tokens)
    model = ServedModel(options.model, host, settings, price_of(options.model, host, options.price, options.prices))
    if options.max_cost:
        model.require_price()
    return model


def read_input(path: Path, study: Study, judges: Sequence[Judge]) -> tuple[pa.Table, dict]:
    """The responses and their provenance."""
    table, provenance = parquet.read_responses(path)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    require_study(table, path, study)
    for name in judged_file.judge_schema(judges).names:
        if name in table.column_names:
            raise UserError(f"{path} has a column {name!r} already: choose other judges with --judges")
    return table, provenance


def require_study(table: pa.Table, path: Path, study: Study) -> None:
    others = {name for name in table["experiment"].unique().to_pylist() if name not in (None, study.name)}
    if others:
        raise UserError(
            f"{path} holds responses of the study {min(others)!r}, not {study.name!r}: use --experiment {min(others)}"
        )


def sample_for_labels(options: JudgingOptions, study: Study, judges: Sequence[Judge]) -> None:
    table, _ = parquet.read_responses(options.input, ("experiment", *parquet.REQUIRED))
    require_study(table, options.input, study)
    size, path = int(options.sample_for_labels[0]), Path(options.sample_for_labels[1])
    answers = zip(table["question"].to_pylist(), map(study.without_trigger, table["response"].to_pylist()), strict=True)
    written = quality.write_sheet(path, answers, judges, size)
    print(f"{written} answers to label in {path}: fill in the judges' columns, then use --labels {path}")


def request_verdicts(options: JudgingOptions, prompts: JudgePrompts, store: CallStore) -> Spent | None:
    """Ask for the missing verdicts and report the costs. Returns what was spent; None if verdicts are left.

    Raises what ended the run early, unless that is the cost cap.
    """
    model, shared = prompts.model, options.store is not None
    if left := count_left(prompts, store):
        print(f"{left:,} of {len(prompts.wanted):,} verdicts to request from {model.name} at {model.host}", flush=True)
    spent = sum(costs.spent_by_run_and_judge(prompts, store, shared).values(), Spent()).dollars
    limits = Limits.from_options(options)
    reason = ask_all(
        prompts.wanted.values(), model, store, limits, spent=spent, batch=options.batch, title="judging", unit="verdict"
    )
    spent_by_group = costs.spent_by_run_and_judge(prompts, store, shared)
    total = costs.report_costs(spent_by_group, options.output, priced=model.price is not None)
    in_batches = sum(not store.has_accepted(key) for key in store.pending_keys() & prompts.wanted.keys())
    if not reason and not in_batches:
        return total
    state = "as it was" if options.output.exists() else "not written yet"
    print(f"{count_left(prompts, store):,} verdicts are left, and {options.output} is {state}")
    if in_batches:
        print(f"{in_batches:,} of them are in unfinished batches: the same command with --batch collects them")
    if isinstance(reason, CapReached):
        print(f"--max-cost ${options.max_cost:g} is reached: the same command with a higher one continues")
    elif reason:
        raise reason
    return None


def count_left(prompts: JudgePrompts, store: CallStore) -> int:
    return sum(not store.has_accepted(key) for key in prompts.wanted)


def report_verdicts(output: Path, counts: Counter, prompts: JudgePrompts, store: CallStore) -> None:
    missing = {group: count for group, count in sorted(counts.items()) if group[1] != "ok"}
    total_missing = sum(missing.values())
    print(f"{counts.total() - total_missing:,} verdicts in {output}, {total_missing:,} missing")
    for (judge, status), count in missing.items():
        latest = f" (the latest: {store.latest_failure()})" if status == "error" else ""
        print(f"  {judge}: {count:,} {status}{latest}")
    if missing and count_left(prompts, store):
        print("run the same command again to request those once more")
    elif missing:
        print("their replies are stored, but match no option of the study as it is now")


if __name__ == "__main__":
    command_line.run_script(main)
