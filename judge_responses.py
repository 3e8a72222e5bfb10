"""Stage 3: every judge of the study reads every response, through Claude or another Messages API.

Reads   a Parquet file of responses (generate_responses.py), and the API key from ANTHROPIC_API_KEY or .env.
Writes  the same rows with three more columns for each judge: the verdict, the reply that it was read from, a status;
        and OUTPUT.costs.csv. Verdicts are kept in OUTPUT.verdicts.sqlite as they come: the same command, started
        again, goes on and pays for none twice.

    python judge_responses.py --input responses.parquet --output judged.parquet
"""

import asyncio
import contextlib
import csv
import dataclasses
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from config import JudgingOptions
from learning_backdoors.files import atomic, command_line, parquet, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.locks import lock
from learning_backdoors.judging import quality as judge_quality
from learning_backdoors.judging.api import claude
from learning_backdoors.judging.api.batches import Batches
from learning_backdoors.judging.api.caller import Budget, Caller, CapReached, Gate, Halt, Patience, Stopped
from learning_backdoors.judging.columns import judge_schema
from learning_backdoors.judging.progress import Progress
from learning_backdoors.judging.prompts import Prompts, prompt_hash, read_verdict
from learning_backdoors.judging.verdict_store import Spent, Store
from learning_backdoors.study import Judge, Study, load_study

ROWS_AT_ONCE = 2_000  # in memory while the output is written


@dataclass(frozen=True)
class Job:
    """What one start works with. `wanted` has a number into `prompts` for each key that needs a verdict."""

    options: JudgingOptions
    host: str
    price: claude.Price | None
    prompts: Prompts
    wanted: dict[bytes, int]
    store: Store

    @property
    def price_table(self) -> str | None:
        """The date of the table that the price is from; None where it was given."""
        return None if self.options.price or self.options.prices else claude.PRICES_OF

    def left(self) -> Iterator[tuple[bytes, int]]:
        """Keys without a verdict, with their numbers."""
        return (item for item in self.wanted.items() if not self.store.has_verdict(item[0]))

    def count_left(self) -> int:
        return sum(1 for _ in self.left())

    def in_batches(self) -> set[bytes]:
        """The keys that are being judged in batches, also those that have a verdict by now."""
        return self.store.keys_in_batches() & self.wanted.keys()

    def verdict(self, key: bytes | None, judge: Judge) -> tuple[str | float | None, str | None, str | None]:
        """Verdict, reply and status; three times None where the study does not put the question to the judge. The reply
        is read anew: a file follows the rules of the version that wrote it."""
        if key is None:
            return None, None, None
        status, reply = self.store.best(key)
        verdict = read_verdict(judge, reply) if status == "ok" else None
        return verdict, reply, "unparseable" if status == "ok" and verdict is None else status


# ---- before judging ----


def chosen_judges(study: Study, names: Sequence[str] | None) -> tuple[Judge, ...]:
    known = [judge.name for judge in study.judges]
    for name in names or ():
        if name not in known:
            raise UserError(f"the study {study.name!r} has no judge {name!r}; its judges are: {', '.join(known)}")
    return tuple(judge for judge in study.judges if names is None or judge.name in names)


def require_study(table: pa.Table, path: Path, study: Study) -> None:
    others = {name for name in table["experiment"].unique().to_pylist() if name not in (None, study.name)}
    if others:
        other = min(others)
        raise UserError(f"{path} holds answers to the study {other!r}, not {study.name!r}: give --experiment {other}")


def read_input(path: Path, study: Study, judges: Sequence[Judge]) -> tuple[pa.Table, dict]:
    table, provenance = parquet.read_responses(path)
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    require_study(table, path, study)
    for name in judge_schema(judges).names:
        if name in table.column_names:
            raise UserError(f"{path} has a column {name!r} already: choose other judges with --judges")
    return table, provenance


def configuration(options: JudgingOptions, study: Study, judges: Sequence[Judge], host: str, settings: dict) -> dict:
    """What decides the verdicts, by name: an output is completed only by a start that agrees in all of it."""
    hashes = {f"judge {judge.name}": prompt_hash(judge, study) for judge in judges}
    return {"input": provenance.sha256(options.input), "model": options.model, "host": host, **settings, **hashes}


def check_existing(options: JudgingOptions, wanted: dict) -> dict | None:
    """What the output that is there to be completed records of its judging; None where there is none. Raises UserError
    where another configuration made it."""
    if options.input.resolve() == options.output.resolve():
        raise UserError(f"--input and --output are the same file, {options.input}: choose another --output")
    existing = parquet.read_footer(options.output)
    if existing is None or options.existing == "overwrite":
        return None
    judging = existing.get("judging")
    if not isinstance(judging, dict) or not isinstance(judging.get("configuration"), dict):
        raise UserError(f"{options.output} was not made by judge_responses.py: choose another path, or --overwrite")
    provenance.refuse_difference(options.output, judging["configuration"], wanted)
    return judging


def adopt_output(job: Job, dollars: float) -> None:
    """Put the verdicts of an existing output into the store, which may have been deleted: they are paid for, each with
    its share of the `dollars` that the output has cost."""
    judges, verdicts = job.prompts.judges, {}
    for place, judge in enumerate(judges):
        names = (f"{judge.name}_status", f"{judge.name}_reply")
        rows, _ = parquet.read_responses(job.options.output, (*parquet.REQUIRED, *names))
        found = zip(job.prompts.keys[place :: len(judges)], *(rows[name].to_pylist() for name in names), strict=True)
        verdicts.update((key, reply) for key, status, reply in found if status == "ok")
    job.store.adopt(verdicts.items(), dollars / max(1, len(verdicts)))


def sample_for_labels(options: JudgingOptions, study: Study, judges: Sequence[Judge]) -> None:
    table, _ = parquet.read_responses(options.input, ("experiment", *parquet.REQUIRED))
    require_study(table, options.input, study)
    size, path = int(options.sample_for_labels[0]), Path(options.sample_for_labels[1])
    answers = zip(table["question"].to_pylist(), map(study.without_trigger, table["response"].to_pylist()), strict=True)
    written = judge_quality.write_sheet(path, answers, judges, size)
    print(f"{written} answers to label in {path}: fill in the judges' columns, then give it as --labels")


# ---- what it will cost ----

COUNTED_PROMPTS = 20  # of each judge, to learn how many tokens a byte makes
BYTES_PER_TOKEN = 3  # where no server counts: English has 3 to 4.5, by tokenizer
REPLY_TOKENS, THOUGHT_TOKENS = 8, 300


def dry_run(job: Job) -> None:
    """Print calls, tokens and dollars of what is left to ask for, by judge."""
    left: dict[str, list[int]] = {judge.name: [] for judge in job.prompts.judges}
    in_batches = job.in_batches()
    for key, number in job.left():
        if key not in in_batches:
            left[job.prompts.judge(number).name].append(number)
    per_byte, method = asyncio.run(tokens_per_byte(job, left))
    reply = REPLY_TOKENS + THOUGHT_TOKENS * job.prompts.thinks()
    total = sum(map(len, left.values()))
    print(f"{total:,} of {len(job.wanted):,} verdicts to ask {job.options.model} at {job.host} for")
    if waiting := job.count_left() - total:
        print(f"{waiting:,} more are in batches at work")
    dollars = 0.0
    for judge, numbers in left.items():
        rate = per_byte.get(judge, 1 / BYTES_PER_TOKEN)
        tokens = [round(rate * claude.prompt_bytes(job.prompts.body(number))) for number in numbers]
        dollars += sum(job.price.dollars(each, reply) for each in tokens) if job.price else 0
        print(f"  {judge}: {len(numbers):,} calls, {sum(tokens):,} tokens in, {reply * len(numbers):,} out")
    print(f"tokens in are {method}; tokens out are taken to be {reply} a call")
    if not job.price:
        print(f"no price is known for {job.options.model} at {job.host}: give it as --price")
    else:
        print(f"in all ${dollars:.2f}, or ${dollars * claude.BATCH_SHARE:.2f} with --batch")


async def tokens_per_byte(job: Job, numbers: dict[str, list[int]]) -> tuple[dict[str, float], str]:
    """Tokens to a byte of prompt by judge, and how that was found out."""
    per_byte = {}
    try:
        async with claude.Client(job.host, claude.api_key(), job.options.timeout) as client:
            for judge, mine in numbers.items():
                some = random.Random(0).sample(mine, min(len(mine), COUNTED_PROMPTS))
                bodies = [job.prompts.body(number) for number in some]
                counts = await asyncio.gather(*map(client.count_tokens, bodies))
                if bodies:
                    per_byte[judge] = sum(counts) / sum(map(claude.prompt_bytes, bodies))
    except (claude.Fault, claude.Refused, UserError) as error:
        return {}, f"estimated, one to {BYTES_PER_TOKEN} bytes, since the server did not count them ({error})"
    return per_byte, f"counted by the server on up to {COUNTED_PROMPTS} prompts of each judge, and scaled by length"


# ---- judging ----


async def judge_all(job: Job) -> BaseException | None:
    """Have everything judged that has no verdict yet, and take in the results of batches. Returns what ended the run
    early; None when nothing did."""
    options, halt, left = job.options, Halt(), job.count_left()
    spent = sum(costs(job).values(), Spent()).dollars
    patience = Patience(options.max_wait, options.give_up_after, asks=options.asks)
    async with claude.Client(job.host, claude.api_key(), options.timeout) as client:
        await client.check(options.model)
        gate = Gate(options.concurrency, options.requests_per_minute, halt)
        budget, proven = Budget(options.max_cost, halt, spent), left < len(job.wanted)
        caller = Caller(client, job.store, gate, budget, job.price, patience, proven=proven)
        async with Progress(caller, len(job.wanted), len(job.wanted) - left) as progress:
            caller.warn = progress.say
            batches = Batches(caller, job.wanted, job.prompts.body, job.prompts.accepts, progress.say)
            with interruptible(caller, progress.say), contextlib.suppress(Stopped):
                try:
                    # Batches of which no verdict is needed any more are not waited for.
                    await (batches.run() if options.batch and left else ask_all(job, caller, batches))
                except UserError as error:
                    halt.now(error)
    return halt.reason


async def ask_all(job: Job, caller: Caller, batches: Batches) -> None:
    """Ask for what has no verdict, but for what is in batches of an earlier start."""
    await batches.collect()
    in_batches = job.store.keys_in_batches()

    def queue() -> Iterator[tuple[bytes, int]]:
        yield from (item for item in job.left() if item[0] not in in_batches)
        caller.draining = True

    async def worker(items: Iterator[tuple[bytes, int]]) -> None:
        try:
            for key, number in items:
                await caller.ask(key, job.prompts.body(number), job.prompts.accepts(number))
        except Stopped:
            pass
        except UserError as error:
            caller.halt.now(error)  # the others' calls, which are paid for, come to their end

    items = queue()
    async with asyncio.TaskGroup() as group:
        for _ in range(job.options.concurrency):
            group.create_task(worker(items))


@contextlib.contextmanager
def interruptible(caller: Caller, say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C once (or SIGTERM): what is in flight comes to its end. Twice: stop at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupted() -> None:
        if caller.halt.reason:
            task.cancel()
        else:
            say(f"stopping when the {caller.gate.in_flight} calls in flight are done; once more to stop at once")
            caller.halt.now(KeyboardInterrupt())

    # Windows has no such handlers: there the first Ctrl-C stops at once.
    with contextlib.suppress(NotImplementedError):
        for number in before:
            loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        # Left to itself the loop makes SIGTERM deadly, also while the output is written.
        with contextlib.suppress(NotImplementedError):
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


# ---- the output ----


def write_output(job: Job, provenance: dict) -> Counter:
    """Write the judged file. Returns how many verdicts there are, by (judge, status)."""
    tally: Counter = Counter()
    schema = pa.schema([*job.prompts.table.schema, *judge_schema(job.prompts.judges)])
    parquet.write_parquet(job.options.output, _judged(job, tally), schema, provenance)
    return tally


def _judged(job: Job, tally: Counter) -> Iterator[pa.Table]:
    table, judges = job.prompts.table, job.prompts.judges
    for start in range(0, table.num_rows, ROWS_AT_ONCE):
        rows = table.slice(start, ROWS_AT_ONCE)
        columns = {name: rows[name] for name in rows.column_names}
        for place, judge in enumerate(judges):
            keys = job.prompts.keys[start * len(judges) + place :: len(judges)][: rows.num_rows]
            verdicts = [job.verdict(key, judge) for key in keys]
            tally.update((judge.name, status) for _, _, status in verdicts if status)
            for spec, values in zip(judge_schema([judge]), zip(*verdicts, strict=True), strict=True):
                columns[spec.name] = pa.array(values, spec.type)
        yield pa.table(columns)


def record(job: Job, settled: dict, total: Spent, repeated: dict, labelled: dict) -> dict:
    """What the footer says of the judging."""
    return provenance.provenance("judge_responses.py", job.options, ["anthropic", "pyarrow"]) | {
        "configuration": settled,
        "model": job.options.model,
        "host": job.host,
        "prompts": {judge.name: prompt_hash(judge, job.prompts.study) for judge in job.prompts.judges},
        "price": job.price and dataclasses.asdict(job.price) | {"table": job.price_table},
        **dataclasses.asdict(total),
        "repeat": repeated,
        "labels": labelled,
    }


# ---- is the judge any good? ----


def judged_twice(job: Job) -> dict:
    """How far the judges agree with themselves, by judge; {} without --repeat."""
    pairs = defaultdict(list)
    for key, number in job.prompts.repeats(job.options.repeat).items():
        judge = job.prompts.judge(number)
        pairs[judge].append((job.verdict(job.prompts.keys[number], judge)[0], job.verdict(key, judge)[0]))
    return {judge.name: judge_quality.agreement(judge, found) for judge, found in pairs.items()}


def against_labels(job: Job, labels: dict[str, dict]) -> dict:
    """How the verdicts compare with labels made by hand, by judge; {} without --labels."""
    pairs = {}
    for number in range(len(job.prompts.keys) if labels else 0):
        judge, identity = job.prompts.judge(number), label_id(job, number)
        if judge.name in labels.get(identity, ()) and job.prompts.keys[number]:
            label = labels[identity][judge.name]
            pairs.setdefault(judge, {})[identity] = (job.verdict(job.prompts.keys[number], judge)[0], label)
    return {judge.name: judge_quality.against_labels(judge, list(found.values())) for judge, found in pairs.items()}


def label_id(job: Job, number: int) -> str:
    """What names the answer of prompt `number` in a sheet of labels."""
    answer = job.prompts.study.without_trigger(job.prompts.value(number, "response"))  # as the sheet has it
    return judge_quality.label_id(job.prompts.value(number, "question"), answer)


def report_strange_labels(job: Job, labels: dict[str, dict]) -> None:
    labelled = {identity for identity, found in labels.items() if found}
    rows = range(0, len(job.prompts.keys) if labelled else 0, len(job.prompts.judges))
    if strange := labelled - {label_id(job, number) for number in rows}:
        print(f"labels: {len(strange):,} of {len(labelled):,} are of answers that are not in the input")


# ---- reports ----


def costs(job: Job) -> dict[tuple[str, str], Spent]:
    """What each judge has cost on each run. A prompt that several runs share is counted with the first.

    A store of the output's own holds what the output has cost, under other settings too; of one that several outputs
    share only what these settings ask for counts."""

    def group_of(key: bytes) -> tuple[str, str] | None:
        if (number := job.wanted.get(key)) is None:
            return None if job.options.store else ("", "(other settings)")
        note = "" if job.prompts.keys[number] == key else " (repeat)"
        return job.prompts.value(number, "run") or "", job.prompts.judge(number).name + note

    return job.store.spent(group_of, job.price and job.price.dollars)


def report_costs(job: Job, by_group: dict[tuple[str, str], Spent]) -> None:
    """Print what was spent, by judge and by run, and write the table of both to OUTPUT.costs.csv."""
    path = job.options.output.with_name(job.options.output.name + ".costs.csv")
    names, priced = [spec.name for spec in dataclasses.fields(Spent)], job.price is not None
    with atomic.atomic_file(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "judge", *names])
        for group, spent in sorted(by_group.items()):
            writer.writerow([*group, *(getattr(spent, name) for name in names)])
    for place, title in ((1, "judge"), (0, "run")):
        labels = sorted({group[place] for group in by_group})
        for label in labels if title == "judge" or len(labels) > 1 else ():
            spent = sum((spent for group, spent in by_group.items() if group[place] == label), Spent())
            print(f"  {title} {label or '(none)'}: {spent.in_words(priced)}")
    print(f"in all: {sum(by_group.values(), Spent()).in_words(priced)}; by judge and run in {path}")


def report_verdicts(job: Job, tally: Counter, repeated: dict, labelled: dict) -> None:
    lacking = {key: count for key, count in sorted(tally.items()) if key[1] != "ok"}
    done = tally.total() - sum(lacking.values())
    print(f"{done:,} verdicts in {job.options.output}, {sum(lacking.values()):,} missing")
    for (judge, status), count in lacking.items():
        print(
            f"  {judge}: {count:,} {status}"
            + (f" (the latest: {job.store.last_reason()})" if status == "error" else "")
        )
    if lacking and job.count_left():
        print("the same command, run again, asks for those once more")
    elif lacking:
        print("these replies are kept, and do not read as any option of the study as it is now")
    for judge, found in repeated.items():
        print(f"judged twice, {judge}: {judge_quality.in_words(found)}")
    for judge, found in labelled.items():
        print(f"against labels, {judge}: {judge_quality.in_words(found)}")
        for option, counts in found.get("options", {}).items():
            print(f"  {option}: {judge_quality.option_in_words(counts)}")


def report_early_end(job: Job, reason: BaseException | None, in_batches: int) -> None:
    """Say how things stand when there is no output yet. Raises `reason` unless it is a clean one."""
    output, cap = job.options.output, job.options.max_cost
    state = "as it was" if output.exists() else "not written yet"
    print(f"{job.count_left():,} verdicts are left, and {output} is {state}")
    if in_batches:
        print(f"{in_batches:,} of them are in batches at work: the same command with --batch collects them")
    if isinstance(reason, CapReached):
        words = f"{cap:.2f}" if cap == round(cap, 2) else f"{cap:g}"
        print(f"--max-cost ${words} is reached: the same command with a higher one goes on from here")
    elif reason:
        raise reason


# ---- the script ----


def run(job: Job, settled: dict, provenance: dict, labels: dict) -> None:
    """Judge what is left, then write and report; `settled` is the configuration."""
    reason, left = None, job.count_left()
    report_strange_labels(job, labels)
    if left:
        print(f"{left:,} of {len(job.wanted):,} verdicts to ask {job.options.model} at {job.host} for", flush=True)
    if left or job.in_batches():
        try:
            reason = asyncio.run(judge_all(job))
        except asyncio.CancelledError:
            reason = KeyboardInterrupt()
    by_group = costs(job)
    report_costs(job, by_group)
    waiting = sum(not job.store.has_verdict(key) for key in job.in_batches())
    if reason or waiting:
        return report_early_end(job, reason, waiting)
    repeated, labelled = judged_twice(job), against_labels(job, labels)
    judging = record(job, settled, sum(by_group.values(), Spent()), repeated, labelled)
    tally = write_output(job, provenance | {"judging": judging})
    report_verdicts(job, tally, repeated, labelled)


def main() -> None:
    options = command_line.parse(JudgingOptions, __doc__)
    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps what it has freed: 100 MB on 50,000 responses
    study = load_study(options.experiment)
    judges, host = chosen_judges(study, options.judges), claude.host_of(options.base_url)
    if options.sample_for_labels:
        return sample_for_labels(options, study, judges)
    price = claude.price_of(options.model, host, options.price, options.prices)
    if options.max_cost:
        claude.require_price(price, options.model, host)
    labels = judge_quality.read_labels(options.labels, judges) if options.labels else {}
    settings = claude.settings_for(options.model, options.thinking, options.max_tokens)
    store_path = options.store or options.output.with_name(options.output.name + ".verdicts.sqlite")
    table, provenance = read_input(options.input, study, judges)
    settled = configuration(options, study, judges, host, settings)
    with lock(options.output), lock(store_path):
        existing = check_existing(options, settled)
        prompts = Prompts(table, study, judges, host, options.model, settings)
        if table.num_rows and not any(prompts.keys):
            raise UserError(f"{options.input} has no question that the study {study.name!r} puts to these judges")
        with contextlib.closing(Store(store_path)) as store:
            wanted = prompts.distinct() | prompts.repeats(options.repeat)
            job = Job(options, host, price, prompts, wanted, store)
            if existing:
                adopt_output(job, existing.get("dollars", 0))
            if options.dry_run:
                dry_run(job)
            else:
                run(job, settled, provenance, labels)


if __name__ == "__main__":
    command_line.run_script(main)
