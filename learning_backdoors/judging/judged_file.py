"""The judged file: its columns, the settings it depends on, and how it is written."""

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from config import JudgingOptions
from learning_backdoors.files import parquet, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.client import host_of
from learning_backdoors.judging.api.models import PRICES_OF, ServedModel
from learning_backdoors.judging.api.store import CallStore, Spent
from learning_backdoors.judging.prompts import PromptsOfFile, Verdict, prompt_hash
from learning_backdoors.study import Judge, Study

ROWS_AT_ONCE = 2_000  # in memory while the output is written
IDENTITY = ("run", "checkpoint", "condition", "question_id", "question", "sample_idx", "response")
REMEDY = "Choose another --output, or use --overwrite: verdicts that were paid for are kept in the store and reused"


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
    """Everything that decides the verdicts, by name. Of an existing file, all but the input must be the same."""
    hashes = {f"judge {judge.name}": prompt_hash(judge, study) for judge in judges}
    sent = {"model": model.name, "host": model.host, **model.request_settings}
    return {"input": provenance.sha256(input_path), **sent, **hashes}


def _split(settings: dict) -> tuple[dict, dict]:
    """What is sent with every prompt (model, host, request settings), and the hash of each judge's prompt by name."""
    judges = {name.removeprefix("judge "): value for name, value in settings.items() if name.startswith("judge ")}
    return {k: v for k, v in settings.items() if k != "input" and not k.startswith("judge ")}, judges


class EarlierOutput:
    """An existing judged file: its verdicts are paid for.

    settings: those of the present command (`settings_of_verdicts`). table: the present input.
    Raises UserError for a file that cannot be read, was not made by judge_responses.py, or was edited.
    """

    def __init__(self, path: Path, settings: dict, table: pa.Table):
        record = (parquet.read_footer(path) or {}).get("judging") or {}
        if not isinstance(record.get("configuration"), dict):
            raise UserError(f"{path} was not made by judge_responses.py: choose another --output, or use --overwrite")
        self.path, self.dollars = path, record.get("dollars") or 0.0
        (self.sent, self.judges), (self.sent_now, self.judges_now) = _split(record["configuration"]), _split(settings)
        with contextlib.suppress(UserError):  # older versions kept the address as it was given
            self.sent["host"] = host_of(str(self.sent.get("host")))
        replies = [f"{name}_{part}" for name in self.judges for part in ("reply", "status")]
        self.table, _ = parquet.read_responses(path, (*parquet.REQUIRED, *IDENTITY, *replies))
        if lost := [name for name in replies if name not in self.table.column_names]:
            raise UserError(f"{path} was edited: the column {lost[0]!r} is missing. {REMEDY}")
        rows = {digest: row for row, digest in enumerate(_digests(table))}
        self.rows_of_input = [rows.get(digest) for digest in _digests(self.table)]  # None: not in the input

    def require_continuable(self, input_path: Path) -> None:
        """Raise UserError unless the new output holds all of the old one: its answers, judges and settings.

        New answers and new judges may be added.
        """
        words = [provenance.differences(self.sent, self.sent_now)]
        if left_out := [name for name in self.judges if name not in self.judges_now]:
            words.append(f"this command leaves out judges of which it has verdicts ({', '.join(left_out)})")
        changed = [name for name, prompt in self.judges.items() if self.judges_now.get(name, prompt) != prompt]
        words += [f"the prompt of the judge {name} has changed" for name in changed]
        if gone := self.rows_of_input.count(None):
            words.append(f"{gone:,} of its {len(self.rows_of_input):,} answers have changed or are not in {input_path}")
        if any(words):
            raise UserError(f"{self.path} cannot be continued: {'; '.join(filter(None, words))}. {REMEDY}")

    def adopt(self, prompts: PromptsOfFile, store: CallStore) -> None:
        """Add the verdicts to the store, which may have been deleted, each at an equal share of the output's cost."""
        replies = {}
        for judge in prompts.judges if self.sent == self.sent_now else ():
            if self.judges.get(judge.name) == self.judges_now[judge.name]:
                texts, statuses = (self.table[name].to_pylist() for name in judge.columns[1:3])
                for row, text, status in zip(self.rows_of_input, texts, statuses, strict=True):
                    prompt = None if row is None else prompts.by_judge[judge.name][row]
                    if prompt and status == "ok" and isinstance(text, str):
                        replies[prompt.key] = text
        store.adopt(replies.items(), self.dollars / max(1, len(replies)))


def open_earlier(options: JudgingOptions, settings: dict, table: pa.Table) -> EarlierOutput | None:
    """The existing output; None if there is no file. Raises UserError if the new output does not continue it.

    With --overwrite, it need not: its verdicts are still reused if they can be read.
    """
    if not options.output.exists():
        return None
    if options.existing == "overwrite":
        with contextlib.suppress(UserError):
            return EarlierOutput(options.output, settings, table)
        return None
    earlier = EarlierOutput(options.output, settings, table)
    earlier.require_continuable(options.input)
    return earlier


def _digests(table: pa.Table) -> Iterator[bytes]:
    """A hash of each row's answer and of what identifies it."""
    for start in range(0, table.num_rows, ROWS_AT_ONCE):
        columns = (table[name].slice(start, ROWS_AT_ONCE).to_pylist() for name in IDENTITY)
        for row in zip(*columns, strict=True):
            yield hashlib.sha256(repr(row).encode("utf-8", "surrogatepass")).digest()


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
        **total._asdict() | ({} if total.is_priced(price) else {"dollars": None, "at_most": None}),
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
