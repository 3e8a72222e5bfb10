"""The judged file: its columns, the settings it depends on, and how it is written."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from config import JudgingOptions
from learning_backdoors.files import parquet, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.models import PRICES_OF, ServedModel
from learning_backdoors.judging.api.store import CallStore, Spent
from learning_backdoors.judging.prompts import PromptsOfFile, Verdict, prompt_hash
from learning_backdoors.study import Judge, Study

ROWS_AT_ONCE = 2_000  # in memory while the output is written


def judge_schema(judges: Iterable[Judge]) -> pa.Schema:
    """Four columns per judge J: the verdict J, the judge's text J_reply, J_status, and J_reason.

    The verdict is the option's text or the number. It is null unless the status is `ok`, and the reason says why.
    """
    fields = []
    for judge in judges:
        verdict, *texts = judge.columns
        fields.append((verdict, pa.string() if judge.options else pa.float64()))
        fields += [(name, pa.string()) for name in texts]
    return pa.schema(fields)


def settings_of_verdicts(input_path: Path, study: Study, judges: Sequence[Judge], model: ServedModel) -> dict:
    """Everything that decides the verdicts, by name. A file is continued only with the same settings."""
    hashes = {f"judge {judge.name}": prompt_hash(judge, study) for judge in judges}
    sent = {"model": model.name, "host": model.host, **model.request_settings}
    return {"input": provenance.sha256(input_path), **sent, **hashes}


def earlier_record(path: Path, settings: dict) -> dict | None:
    """The judging record in an existing output's footer; None if there is no file.

    Raises UserError if the output depends on other settings.
    """
    footer = parquet.read_footer(path)
    if footer is None:
        return None
    record = footer.get("judging")
    if not isinstance(record, dict) or not isinstance(record.get("configuration"), dict):
        raise UserError(
            f"{path} was not made by judge_responses.py: choose another path, or replace it with --overwrite"
        )
    provenance.refuse_difference(path, record["configuration"], settings)
    return record


def adopt_verdicts(path: Path, record: dict, prompts: PromptsOfFile, store: CallStore) -> None:
    """Add the verdicts of an existing output to the store, which may have been deleted.

    They are paid for: each is entered at an equal share of the output's cost.
    """
    replies = {}
    for judge in prompts.judges:
        names = (f"{judge.name}_status", f"{judge.name}_reply")
        table, _ = parquet.read_responses(path, (*parquet.REQUIRED, *names))
        statuses, texts = (table[name].to_pylist() for name in names)
        for prompt, status, text in zip(prompts.by_judge[judge.name], statuses, texts, strict=True):
            if status == "ok":
                replies[prompt.key] = text
    store.adopt(replies.items(), record.get("dollars", 0) / max(1, len(replies)))


def judging_record(options: JudgingOptions, prompts: PromptsOfFile, settings: dict, total: Spent) -> dict:
    """What the footer says about the judging."""
    price, table = prompts.model.price, None if options.price or options.prices else PRICES_OF
    return {
        **provenance.provenance("judge_responses.py", options, ["anthropic", "pyarrow"]),
        "configuration": settings,
        "model": prompts.model.name,
        "host": prompts.model.host,
        "prompts": {judge.name: prompt_hash(judge, prompts.study) for judge in prompts.judges},
        "price": price and dataclasses.asdict(price) | {"table": table},
        **total._asdict(),
    }


def write_judged(path: Path, prompts: PromptsOfFile, store: CallStore, footer: dict) -> Counter:
    """Write the input's rows with all verdicts. Returns the number of verdicts by (judge, status, reason)."""
    counts: Counter = Counter()
    schema = pa.schema([*prompts.table.schema, *judge_schema(prompts.judges)])
    parquet.write_parquet(path, _judged_rows(prompts, store, counts), schema, footer)
    return counts


def _judged_rows(prompts: PromptsOfFile, store: CallStore, counts: Counter) -> Iterator[pa.Table]:
    for start in range(0, prompts.table.num_rows, ROWS_AT_ONCE):
        rows = prompts.table.slice(start, ROWS_AT_ONCE)
        columns = {name: rows[name] for name in rows.column_names}
        for judge in prompts.judges:
            some = prompts.by_judge[judge.name][start : start + ROWS_AT_ONCE]
            verdicts = [prompt.verdict(store) if prompt else Verdict() for prompt in some]
            counts.update((judge.name, verdict.status, verdict.reason) for verdict in verdicts if verdict.status)
            for field, values in zip(judge_schema([judge]), zip(*verdicts, strict=True), strict=True):
                columns[field.name] = pa.array(values, field.type)
        yield pa.table(columns)
