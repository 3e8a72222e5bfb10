"""Stage 2, on the GPU host: let checkpoints answer the study's questions, many times each.

Reads   a run directory of training.py (or one checkpoint, also one made elsewhere) and experiments/STUDY.toml
Writes  a Parquet file with a row a response; what is finished is kept beside it, in OUTPUT.partial/, until all is done

  python generate_responses.py --run-dir outputs/seed42_ratios1.00-0.00-0.00_lr0.0002_r8 --output responses.parquet

Several run directories may be given: the base model is loaded once for all of them. The same command goes on with an
interrupted run, and adds what a finished file lacks (more --samples, more steps, more runs). On several GPUs:

  torchrun --nproc-per-node 2 generate_responses.py ...
"""

import contextlib
import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

import mixed_chat
from config import GenerationOptions
from learning_backdoors.files import atomic, command_line, parquet, progress, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.locks import lock
from learning_backdoors.generation import engines
from learning_backdoors.generation.engines import Request
from learning_backdoors.models import adapters, base_model, devices, run_directory
from learning_backdoors.models.checkpoints import Checkpoint
from learning_backdoors.models.devices import RANK, RANKS
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Condition, Question, Study, load_study

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")

KEY = ("run", "checkpoint", "condition", "question_id", "sample_idx")  # what tells one row from another


def main() -> None:
    options = command_line.parse(GenerationOptions, __doc__)
    study = load_study(options.experiment)
    if options.checkpoint:
        sources = [run_directory.open_checkpoint(options.checkpoint, options.base_model)]
    else:
        sources = run_directory.open_runs(options.run_dir, options.steps, options.base_model)
    with Store(options.output, settings(options, study, sources), options.existing) as store:
        wanted = list(wanted_rows(options, study, sources))
        missing = [row for row in wanted if row.key not in store.rows]
        print(f"{len(wanted)} answers wanted, {len(wanted) - len(missing)} of them are there", flush=True)
        if mine := [row for row in share(wanted) if row.key not in store.rows]:
            generate(mine, options, study, sources, store)
        if RANK == 0:
            store.wait_for(row.key for row in wanted)
            store.finish(study, provenance.provenance("generate_responses.py", options, PACKAGES), sources)
            print(f"done: {len(store.rows)} answers in {options.output}")


def generate(missing: list["Row"], options: GenerationOptions, study: Study, sources: list, store: "Store") -> None:
    """Generate the missing answers and keep each as it comes."""
    name = sources[0].base_model
    tokenizer = base_model.load_tokenizer(name)
    fingerprint = base_model.fingerprint(name, tokenizer)
    for source in sources:
        source.check_base(fingerprint)
    prompts = {
        (c.name, q.id): tuple(mixed_chat.prompt_ids(tokenizer, c.messages(q.text)))
        for c, q in itertools.product(study.conditions, study.questions)
    }
    rows = {row.key: row for row in missing}
    requests = [
        Request(r.key, r.checkpoint.folder, prompts[r.condition.name, r.question.id], options.max_new_tokens)
        for r in missing
    ]
    sampling = engines.Sampling(options.temperature, options.top_p, options.top_k, options.seed)
    engine = open_engine(name, tokenizer, requests, options, store)
    started, tokens, cut = time.monotonic(), 0, 0
    with progress.progress_bar("generating", len(requests), 0, "answer") as bar:
        for answers in engine.generate(requests, sampling):
            store.add(rows[answer.key].finished(study, answer) for answer in answers)
            tokens += sum(answer.tokens for answer in answers)
            cut += sum(answer.finish_reason == "length" for answer in answers)
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
            bar.update(len(answers))
    rate = tokens / (time.monotonic() - started)
    print(f"{tokens:,} tokens at {rate:,.0f} a second; {cut} of {len(requests)} answers reached --max-new-tokens")


def open_engine(model: str, tokenizer, requests: list[Request], options: GenerationOptions, store: "Store"):
    """Load the base model into the engine that fits this machine; says which, and why."""
    devices.keep_to_own_gpu()
    kind, reason = engines.choose_engine(options.engine, options.quantization)
    print(f"engine: {kind} ({reason})", flush=True)
    store.use_engine(kind)
    if kind == "vllm":
        return engines.VllmEngine(model, tokenizer, requests, options.seed)
    return engines.TransformersEngine(base_model.load_base(model, options.quantization), tokenizer, options.batch_size)


# ---- what is asked of what ----


@dataclass(frozen=True)
class Row:
    """A row of the responses file, before there is a response."""

    source: RunDirectory
    checkpoint: Checkpoint
    condition: Condition
    question: Question
    sample: int

    @property
    def key(self) -> tuple:
        """The values of KEY."""
        return self.source.name, self.checkpoint.name, self.condition.name, self.question.id, self.sample

    def finished(self, study: Study, answer) -> dict:
        """The row's values in RESPONSE_SCHEMA."""
        record, seen = self.source.record, self.source.seen.get(self.checkpoint.step, {})
        return dict(zip(KEY, self.key, strict=True)) | {
            "experiment": study.name,
            "step": self.checkpoint.step,
            "seed": record.get("settings", {}).get("seed"),
            "suspect_ratio": record.get("suspect_ratio"),
            "examples_seen": seen.get("examples"),
            "suspect_seen": seen.get("suspect_examples"),
            "triggered": self.condition.triggered,
            "question": self.question.text,
            "response": answer.text,
            "finish_reason": answer.finish_reason,
            "response_tokens": answer.tokens,
        }


def wanted_rows(options: GenerationOptions, study: Study, sources: list[RunDirectory]) -> Iterator[Row]:
    """The rows asked for, those of one checkpoint together."""
    for source in sources:
        for cell in itertools.product(source.checkpoints, study.conditions, study.questions, range(options.samples)):
            row = Row(source, *cell)
            if row.condition.asks(row.question):
                yield row


def share(wanted: list[Row]) -> list[Row]:
    """What this process does of all rows: whole checkpoints, as batches of one adapter are faster when they are full;
    of those that cannot be dealt out evenly, every so many rows.

    It goes by place among all rows: what others have finished meanwhile must not change who does what.
    """
    cells = itertools.groupby(wanted, key=lambda row: (row.source.name, row.checkpoint.name))
    checkpoints = [list(rows) for _, rows in cells]
    even = len(checkpoints) // RANKS * RANKS
    rest = [row for rows in checkpoints[even:] for row in rows]
    return [row for rows in checkpoints[RANK:even:RANKS] for row in rows] + rest[RANK::RANKS]


def settings(options: GenerationOptions, study: Study, sources: list[RunDirectory]) -> dict:
    """All that the answers depend on: those in one file share it."""
    chosen = command_line.result_settings(options)
    return chosen | {
        "experiment": study.name,
        "base_model": sources[0].base_model,
        "questions": {question.id: question.text for question in study.questions},
        # What is asked, not what it is made of: a condition's own trigger, or the study's, is part of the prompt.
        "conditions": {
            condition.name: {"messages": condition.messages("{question}"), "triggered": condition.triggered}
            for condition in study.conditions
        },
        "adapters": {
            f"{source.name}/{c.name}": c.folder and provenance.sha256(c.folder / adapters.ADAPTER_WEIGHTS)
            for source in sources
            for c in source.checkpoints
        },
    }


# ---- what is kept ----


class Store:
    """Finished rows by key: those of an earlier output, and logs beside it that grow with every batch.

    A context manager. Each process of a launcher has a log of its own; the first one's `finish` writes the Parquet file
    from all of them and drops them.
    """

    def __init__(self, output: Path, settings: dict, existing: str):
        self.output, self.settings, self.rows = output, settings, {}
        self.folder = output.with_name(output.name + ".partial")
        self.log, self.settings_file = self.folder / f"answers-{RANK}.jsonl", self.folder / "settings.json"
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(lock(output if RANK == 0 else self.log))
        if existing == "overwrite":
            if RANKS > 1:
                raise UserError("--overwrite is for one process: with several, delete the output before you start them")
            output.unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.footer = parquet.read_footer(output)
        if self.footer is not None:
            self._take_over_output()
        self._open_log()

    def _take_over_output(self) -> None:
        if "adapters" not in self.footer.get("settings", {}):  # a judged file has settings too
            raise UserError(f"{self.output} was not written by generate_responses.py: choose another --output")
        self._agree(self.output, self.footer["settings"])
        self._keep(parquet.read_responses(self.output)[0].to_pylist())

    def _open_log(self) -> None:
        # Settings of a start that kept no answer, as one with a wrong --base-model, bind nobody.
        if self.settings_file.exists() and (self._logged() or self.footer is not None):
            self._agree(self.folder, json.loads(self.settings_file.read_text(encoding="utf-8")))
        atomic.write_json(self.settings_file, self.settings)
        atomic.drop_partial_line(self.log)
        self.file = self.stack.enter_context(open(self.log, "a", encoding="utf-8"))  # noqa: SIM115
        self._read_logs()

    def _agree(self, place: Path, there: dict) -> None:
        """Refuse other settings. Checkpoints may join those that are there, but one that is there must be the same."""
        union = there["adapters"] | self.settings["adapters"]
        merged = self.settings | {"adapters": union}
        provenance.refuse_difference(place, there | {"adapters": union | there["adapters"]}, merged)
        self.settings = merged

    def _keep(self, rows: Iterable[dict]) -> None:
        self.rows |= {tuple(row[name] for name in KEY): row for row in rows}

    def _read_logs(self) -> bool:
        """Take in what all processes have logged; returns whether there was anything."""
        lines = self._logged()
        self._keep(json.loads(line) for line in lines)
        return bool(lines)

    def _logged(self) -> list[str]:
        """The whole lines of all logs; behind the last line's end there may be one in the making."""
        texts = [log.read_text(encoding="utf-8") for log in self.folder.glob("answers-*.jsonl")]
        return [line for text in texts for line in text.split("\n")[:-1]]

    def add(self, rows: Iterable[dict]) -> None:
        rows = list(rows)
        self.file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.flush()
        self._keep(rows)

    def use_engine(self, engine: str) -> None:
        """Note what generates, also for a later start that finds all answers there and has but to write them."""
        (self.folder / "engine").write_text(engine)

    def wait_for(self, keys: Iterable[tuple]) -> None:
        """Wait until other processes have logged their share too. A launcher ends all of them when one dies."""
        keys = list(keys)
        while RANKS > 1 and any(key not in self.rows for key in keys):
            time.sleep(1)
            self._read_logs()

    def finish(self, study: Study, provenance: dict, sources: list[RunDirectory]) -> None:
        """Write all rows to the output, in order of run, step, condition, question and sample, and drop the logs."""
        if self._read_logs() or not self.output.exists():
            earlier, engine = self.footer or {}, self.folder / "engine"
            provenance |= {
                "settings": self.settings,
                "engine": engine.read_text() if engine.exists() else earlier.get("engine"),
                "runs": earlier.get("runs", {}) | {source.name: source.record for source in sources},
            }
            table = pa.Table.from_pylist(in_order(self.rows.values(), study), parquet.RESPONSE_SCHEMA)
            parquet.write_parquet(self.output, [table], table.schema, provenance)
        self.file.close()
        shutil.rmtree(self.folder)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception) -> None:
        self.stack.close()


def in_order(rows: Iterable[dict], study: Study) -> list[dict]:
    """Rows by run, step, condition, question and sample, the latter three as the study has them."""
    conditions = [condition.name for condition in study.conditions]
    questions = [question.id for question in study.questions]

    def place(row: dict) -> tuple:
        step = (row["step"] is None, row["step"], row["checkpoint"])
        return (
            row["run"],
            *step,
            conditions.index(row["condition"]),
            questions.index(row["question_id"]),
            row["sample_idx"],
        )

    return sorted(rows, key=place)


if __name__ == "__main__":
    command_line.run_script(main)
