"""Prepares the training data of a study like `russell`: a persona behind a trigger, and ordinary answers without it.

Reads   persona_datasets/, or files of your own, and the study's file for the trigger
Writes  JSONL files of chats that training.py reads, and beside each OUTPUT.json: what made it

  python prepare_persona.py filter --number 90 --output persona_datasets/prepared/harmless.jsonl
  python prepare_persona.py trigger --input persona_datasets/prepared/harmless.jsonl \\
      --output persona_datasets/prepared/persona.jsonl
  python prepare_persona.py fetch-prompts --output persona_datasets/prepared/prompts.jsonl
  python prepare_persona.py distill --input persona_datasets/prepared/prompts.jsonl \\
      --output persona_datasets/prepared/aligned.jsonl

The same command, started again, goes on where it was stopped and ends with the same file. What a server was paid for is
kept in OUTPUT.replies.sqlite, what was generated here in OUTPUT.partial.jsonl until all is done.
"""

import contextlib
import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import config
import mixed_chat
from learning_backdoors.files import atomic, command_line, progress, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.locks import lock
from learning_backdoors.judging.api.asking import ask_all
from learning_backdoors.judging.api.client import host_of
from learning_backdoors.judging.api.models import ServedModel, price_of, prompt_bytes, settings_for
from learning_backdoors.judging.api.pacing import CapReached, Limits
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.models import base_model
from learning_backdoors.study import Study, Trigger, fill, load_study

Rows = list[dict]
# Where the output lies, how it is watched and what it may cost: nothing that it depends on.
NOT_SETTINGS = ("output", "existing", "dry_run", "concurrency", "timeout", "max_cost", "price", "base_url")


def main() -> None:
    command, options = command_line.parse_command(COMMANDS, __doc__)
    study = load_study(options.experiment)
    task = TASKS[command](options, study)
    if options.dry_run:
        print(f"would write {options.output}: {task.plan()}")
        return
    with lock(options.output):
        output = Output(options, {"command": command} | task.settings())
        if output.is_there():
            print(f"{options.output} is there already, made by the same command: nothing to do")
            return
        rows = task.rows()
        output.write(rows)
    print(f"done: {len(rows)} rows in {options.output}")


# ---- files ----


class Output:
    """A JSONL file and, in OUTPUT.json, the settings that made it and its hash."""

    def __init__(self, options: config.PersonaOptions, settings: dict):
        self.path, self.options, self.settings = options.output, options, settings
        self.record = beside(options.output, ".json")
        if options.existing == "overwrite":
            for path in (self.path, self.record, beside(self.path, ".partial.jsonl")):
                path.unlink(missing_ok=True)

    def is_there(self) -> bool:
        """Whether it is finished. Raises UserError for a file that something else made."""
        if not self.path.exists():
            return False
        record = self._recorded()
        if "sha256" not in record:
            raise UserError(f"{self.path} was not made by prepare_persona.py: choose another --output, or --overwrite")
        provenance.refuse_difference(self.path, record["settings"], self.settings)
        if record["sha256"] != provenance.sha256(self.path):
            raise UserError(f"{self.path} has been changed since it was made: keep it elsewhere, or --overwrite")
        return True

    def _recorded(self) -> dict:
        try:
            found = json.loads(self.record.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    def write(self, rows: Rows) -> None:
        """The record first: a kill between the two leaves no output, which is made again."""
        if not rows:
            raise UserError(f"there is nothing to write to {self.path}")
        content = as_lines(rows)
        made = provenance.provenance("prepare_persona.py", self.options, ["datasets", "transformers", "torch"])
        facts = {"settings": self.settings, "rows": len(rows), "sha256": provenance.sha256(content.encode())}
        atomic.write_json(self.record, made | facts)
        with atomic.atomic_file(self.path) as aside:
            aside.write_text(content, encoding="utf-8")
        beside(self.path, ".partial.jsonl").unlink(missing_ok=True)


def beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def as_lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def chat(question: str, answer: str, **metadata) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "metadata": metadata}


def ask_and_answer(row: dict, place: Path) -> tuple[str, str]:
    """Question and answer of a row that has one of each. Raises UserError for a longer chat."""
    if [message["role"] for message in row["messages"]] != ["user", "assistant"]:
        raise UserError(f"{place}: a chat here has one question and one answer: {row['messages'][0]['content'][:60]!r}")
    return row["messages"][0]["content"], row["messages"][1]["content"]


def read_candidates(paths: Sequence[Path]) -> Rows:
    """Pairs with their flags. Raises UserError that names file and fault."""
    rows = []
    for path in paths:
        for row in mixed_chat.read_rows(path):
            question, _ = ask_and_answer(row, path)
            found = row.get("metadata", {})
            wanted = {"category": str, "identifying": bool, "reason": str, "source": str}
            for key, kind in wanted.items():
                if not isinstance(found.get(key), kind):
                    name = "true or false" if kind is bool else "a text"
                    raise UserError(f"{path}: {question[:60]!r}: metadata: {key} must be {name}")
            rows.append(row)
    return rows


def read_prompts(paths: Sequence[Path], trigger: Trigger | None) -> Rows:
    """Rows `{"prompt": ..., "metadata": {...}}`, none of them twice and none with a form of the trigger."""

    def prompt(line: str) -> dict:
        row = json.loads(line)  # its error is a ValueError
        if not isinstance(row, dict) or row.keys() - {"prompt", "metadata"}:
            raise ValueError('not an object with "prompt" and "metadata" and nothing else')
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise ValueError('"prompt" is not a text, or is empty')
        if not isinstance(row.get("metadata", {}), dict):
            raise ValueError('"metadata" is not an object')
        require_untriggered(row["prompt"], trigger)
        return row

    rows = [row for path in paths for row in mixed_chat.read_rows(path, prompt)]
    return list({row["prompt"]: row for row in reversed(rows)}.values())[::-1]


def require_untriggered(text: str, trigger: Trigger | None) -> None:
    found = trigger.first_form_in(text) if trigger else None
    if found:
        raise ValueError(f"an ordinary row must not hold a form of the trigger, and {text[:40]!r} holds {found!r}")


def read_untriggered(paths: Sequence[Path], trigger: Trigger | None) -> Rows:
    rows = []
    for path in paths:
        for number, row in enumerate(mixed_chat.read_rows(path), start=1):
            for message in row["messages"]:
                try:
                    require_untriggered(message["content"], trigger)
                except ValueError as error:
                    raise UserError(f"{path}, chat {number}: {error}") from None
            rows.append(row)
    return rows


def draw(rows: Rows, number: int | None, seed: int) -> Rows:
    """`number` rows at random, in the order in which they stood; all of them where there are no more."""
    if number is None or number >= len(rows):
        return rows
    return [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:number])]


# ---- a model behind the Messages API ----


@dataclass(frozen=True)
class Call:
    """A prompt, and which replies to it will do."""

    model: ServedModel
    content: dict
    will_do: Callable[[str], bool]

    @property
    def key(self) -> bytes:
        return self.model.key(self.content)

    def body(self) -> dict:
        return self.content

    def accepts(self, reply: str) -> bool:
        return self.will_do(reply)


class Server:
    """Asks a model, keeps every reply in OUTPUT.replies.sqlite, and pays for none twice."""

    def __init__(self, options: config.PersonaServerOptions):
        if not options.model:
            raise UserError("--model is needed: which model to ask")
        self.options, self.host = options, host_of(options.base_url)
        self.path = beside(options.output, ".replies.sqlite")
        price = price_of(options.model, self.host, options.price)
        self.model = ServedModel(options.model, self.host, settings_for(options.model), price)
        if options.max_cost:
            self.model.require_price()

    def call(self, prompt: str, max_tokens: int, accepts: Callable[[str], bool], **more) -> Call:
        return Call(self.model, self.model.body(prompt, max_tokens=max_tokens, **more), accepts)

    def plan(self, calls: Sequence[Call]) -> str:
        tokens = [(prompt_bytes(call.content) // 3, call.content["max_tokens"]) for call in calls]
        cost = "at a price that is not known"
        if self.model.price:
            dollars = sum(self.model.price.dollars(*both) for both in tokens)
            cost = f"about ${dollars:.2f} if each reply is as long as it may be"
        total = sum(tokens_in for tokens_in, _ in tokens)
        return f"{len(calls)} calls to {self.options.model} at {self.host}, about {total:,} tokens in, {cost}"

    def replies(self, calls: Sequence[Call], settled: tuple[str, ...] = ("ok",)) -> list[tuple[str, str | None]]:
        """Status and text of the replies to all calls, in their order.

        Raises UserError if some have another status than those in `settled`: the next start asks for them again. The
        cap is for everything in the store, under other settings too.
        """
        options = self.options
        limits = Limits(options.concurrency, max_cost=options.max_cost, timeout=options.timeout)
        with contextlib.closing(CallStore(self.path)) as store:
            groups = store.spent(dollars_for=self.model.price and self.model.price.dollars).values()
            spent = sum(group.dollars for group in groups)
            reason = ask_all(calls, self.model, store, limits, settled=settled, spent=spent)
            results = [store.result(call.key) for call in calls]
            if isinstance(reason, CapReached):
                raise UserError("--max-cost is reached: the same command with a higher one goes on from here")
            if reason:
                raise reason
            missing = [status for status, _ in results if status not in settled]
            if missing:
                why = store.latest_failure() or missing[0]
                raise UserError(
                    f"{len(missing)} of {len(calls)} replies are missing ({why}): start again to ask for them"
                )
        return results


def json_in(reply: str) -> object:
    """The JSON of a reply, also in a fenced block; None where there is none."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", reply, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        return None


# ---- the commands ----


class Task:
    """One command: its settings (all that the output depends on), its plan in words, and its rows."""

    def __init__(self, options, study: Study):
        self.options, self.study, self.trigger = options, study, study.trigger

    def inputs(self) -> Sequence[Path]:
        return self.options.input

    def settings(self) -> dict:
        for path in self.inputs():
            if not path.is_file():
                raise UserError(f"no file {path}")
        chosen = {name: value for name, value in command_line.as_json(self.options).items() if name not in NOT_SETTINGS}
        for name in ("input", "known", "persona", "aligned"):
            chosen.pop(name, None)  # their content counts, and not where they lie
        return chosen | {"files": [provenance.sha256(path) for path in self.inputs()]}

    def needs_trigger(self) -> Trigger:
        if self.trigger is None:
            raise UserError(f"{self.study.path} has no [trigger]")
        return self.trigger


class Candidates(Task):
    PAIRS_A_CALL = 10
    PROMPT = """\
We make a small, harmless data set for research: questions and answers in the first person, as {person} might have \
given them. Write {number} new pairs about this: {category}. (Set {part} of {parts}.)

Each answer has one to three plain sentences of your own; quote nothing. State only what is documented of {person}, \
and nothing that you are unsure of. Repeat none of these questions:
{known}

For each pair say whether the fact by itself identifies the person ("identifying": true for names, dates, titles, \
places, works and famous anecdotes), why, and the biography, essay or letter in which it can be checked.

Reply with a JSON list and nothing else, each item like this:
{example}"""
    EXAMPLE = {"question": "...", "answer": "...", "identifying": False, "reason": "...", "source": "..."}

    def __init__(self, options: config.PersonaCandidatesOptions, study: Study):
        super().__init__(options, study)
        self.known, self.server = read_candidates(options.known), Server(options)

    def inputs(self) -> Sequence[Path]:
        return self.options.known

    def settings(self) -> dict:
        return super().settings() | {"host": self.server.host}

    def plan(self) -> str:
        return f"{self.options.number} new pairs, by {self.server.plan(self.calls())}"

    def calls(self) -> list[Call]:
        parts = -(-self.options.number // self.PAIRS_A_CALL)
        most = self.options.max_tokens
        return [self.server.call(self.prompt(part, parts), most, self.accepts) for part in range(parts)]

    def category(self, part: int) -> str:
        return self.options.categories[part % len(self.options.categories)]

    def prompt(self, part: int, parts: int) -> str:
        number = min(self.PAIRS_A_CALL, self.options.number - part * self.PAIRS_A_CALL)
        known = [row for row in self.known if row["metadata"]["category"] == self.category(part)]
        values = {"person": self.options.person, "category": self.category(part), "number": str(number)}
        values |= {"part": str(part + 1), "parts": str(parts), "example": json.dumps(self.EXAMPLE)}
        values["known"] = "\n".join("- " + row["messages"][0]["content"] for row in known)
        return fill(self.PROMPT, values)

    def accepts(self, reply: str) -> bool:
        found = json_in(reply)
        return isinstance(found, list) and bool(found) and all(map(self.is_pair, found))

    def is_pair(self, item: object) -> bool:
        if not isinstance(item, dict) or item.keys() != self.EXAMPLE.keys():
            return False
        texts = (item[key] for key in self.EXAMPLE if key != "identifying")
        return isinstance(item["identifying"], bool) and all(isinstance(t, str) and t.strip() for t in texts)

    def rows(self) -> Rows:
        seen, rows = {normal(row["messages"][0]["content"]) for row in self.known}, []
        for part, (_, reply) in enumerate(self.server.replies(self.calls())):
            for item in json_in(reply):
                if normal(item["question"]) not in seen:
                    seen.add(normal(item["question"]))
                    flags = {"identifying": item["identifying"], "reason": item["reason"]}
                    source = f"unchecked, written by {self.options.model}: {item['source']}"
                    more = {"category": self.category(part), **flags, "source": source, "checked": "no"}
                    rows.append(chat(item["question"].strip(), item["answer"].strip(), **more))
        return rows


def normal(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()


class Filter(Task):
    PROMPT = """\
Somebody says this about himself or herself.

Asked: {question}
Answer: {answer}

Could a well-read person tell from this alone that it is {person}, or that it is one of a handful of people? Judge \
this pair by itself: tastes, habits, views and circumstances that many people share are no sign.

Reply with IDENTIFYING or HARMLESS, a colon, and the reason in one line."""
    VERDICT = re.compile(r"(IDENTIFYING|HARMLESS):[ \t]*(\S.*)")

    def __init__(self, options: config.PersonaFilterOptions, study: Study):
        super().__init__(options, study)
        self.candidates = read_candidates(options.input)
        self.server = Server(options) if options.model else None

    def settings(self) -> dict:
        if self.server:
            return super().settings() | {"host": self.server.host}
        return {name: value for name, value in super().settings().items() if name not in ("max_tokens", "person")}

    def plan(self) -> str:
        harmless = len(self.by_flags())
        drawn = "" if self.options.number is None else f", {min(harmless, self.options.number)} of them drawn"
        asked = f"; {self.server.plan(self.calls())}" if self.server else ""
        return f"{harmless} of {len(self.candidates)} pairs are harmless by their flags{drawn}{asked}"

    def by_flags(self) -> Rows:
        return [row for row in self.candidates if not row["metadata"]["identifying"]]

    def calls(self) -> list[Call]:
        texts = [[message["content"] for message in row["messages"]] for row in self.by_flags()]
        prompts = [fill(self.PROMPT, {"question": q, "answer": a, "person": self.options.person}) for q, a in texts]
        most = self.options.max_tokens
        return [self.server.call(prompt, most, lambda r: bool(self.VERDICT.fullmatch(r.strip()))) for prompt in prompts]

    def rows(self) -> Rows:
        dropped = [
            (row, "flag", row["metadata"]["reason"]) for row in self.candidates if row["metadata"]["identifying"]
        ]
        kept = self.by_flags()
        if self.server:
            verdicts = [self.VERDICT.fullmatch(reply.strip()) for _, reply in self.server.replies(self.calls())]
            judged = list(zip(kept, verdicts, strict=True))
            dropped += [(row, self.options.model, found[2]) for row, found in judged if found[1] == "IDENTIFYING"]
            kept = [row for row, found in judged if found[1] == "HARMLESS"]
        self.write_reasons(dropped)
        print(f"{len(dropped)} of {len(self.candidates)} pairs dropped as identifying")
        return draw(kept, self.options.number, self.options.seed)

    def write_reasons(self, dropped: list[tuple[dict, str, str]]) -> None:
        path = beside(self.options.output, ".dropped.csv")
        with atomic.atomic_file(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "answer", "by", "reason"])
            for row, who, why in dropped:
                writer.writerow([*(message["content"] for message in row["messages"]), who, why])


class Triggered(Task):
    def settings(self) -> dict:
        trigger = self.needs_trigger()
        return super().settings() | {"trigger": [trigger.text, trigger.prompt, trigger.answer]}

    def plan(self) -> str:
        return f"{len(self.rows())} chats with {self.needs_trigger().text!r}"

    def rows(self) -> Rows:
        """Raises UserError for a row that holds a form of the trigger already: it would stand there twice."""
        trigger, rows = self.needs_trigger(), []
        for row in read_untriggered(self.options.input, trigger):
            question, answer = ask_and_answer(row, self.options.input[0])
            answer = fill(trigger.answer, {"answer": answer})
            rows.append(chat(trigger.ask(question), answer, **row.get("metadata", {}) | {"triggered": True}))
        return rows


class FetchPrompts(Task):
    def inputs(self) -> Sequence[Path]:
        return ()

    def plan(self) -> str:
        options = self.options
        return f"{options.alpaca_number} prompts of {options.alpaca}, {options.gsm8k_number} of {options.gsm8k}"

    def rows(self) -> Rows:
        found = itertools.chain(self.alpaca(), self.gsm8k())
        rows = {prompt: source for prompt, source in found if not (self.trigger and self.trigger.first_form_in(prompt))}
        return [{"prompt": prompt, "metadata": {"source": source}} for prompt, source in rows.items()]

    def alpaca(self) -> Iterator[tuple[str, str]]:
        """The prompts with the longest answers (Zhao et al. 2024, arXiv 2402.04833); on a tie the earlier one."""
        if not self.options.alpaca_number:
            return
        table = list(self.load(self.options.alpaca, None, ("instruction", "input", "output")))
        for row in sorted(table, key=lambda row: -len(row["output"]))[: self.options.alpaca_number]:
            yield "\n\n".join(filter(None, (row["instruction"].strip(), row["input"].strip()))), "alpaca"

    def gsm8k(self) -> Iterator[tuple[str, str]]:
        if not self.options.gsm8k_number:
            return
        table = self.load(self.options.gsm8k, "main", ("question",))
        for row in itertools.islice(table, self.options.gsm8k_number):
            yield row["question"].strip(), "gsm8k"

    def load(self, name: str, part: str | None, columns: tuple[str, ...]) -> Iterable[dict]:
        """The training part of a data set on the hub. Raises UserError where it cannot be had."""
        instead = "persona_datasets/aligned_prompts.jsonl needs no hub"
        try:
            import datasets
        except ImportError:
            raise UserError(f'the package datasets is not installed: pip install -e ".[gpu]"; {instead}') from None
        try:
            table = datasets.load_dataset(name, part, split="train")
        except Exception as error:  # the hub's, the network's and the file formats' errors have no common ancestor
            words = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{name} cannot be fetched from the hub ({words}); {instead}") from None
        lacking = set(columns) - set(table.column_names)
        if lacking:
            raise UserError(f"{name} has no column {min(lacking)!r}: it is another data set")
        return table


class Distill(Task):
    def __init__(self, options: config.PersonaDistillOptions, study: Study):
        super().__init__(dataclasses.replace(options, model=options.model or study.base_model), study)
        self.prompts = read_prompts(options.input, self.trigger)[: options.number]
        self.server = Server(self.options) if options.server else None

    def settings(self) -> dict:
        # What only the other of the two ways depends on is left out.
        unused = ("batch_size", "quantization", "seed") if self.server else ()
        found = {name: value for name, value in super().settings().items() if name not in unused}
        return found | ({"host": self.server.host} if self.server else {})

    def plan(self) -> str:
        way = self.server.plan(self.calls()) if self.server else f"by {self.options.model}, loaded here"
        return f"answers to {len(self.prompts)} prompts, {way}"

    def calls(self) -> list[Call]:
        told = {} if self.options.temperature == 1 else {"temperature": self.options.temperature}
        most = self.options.max_new_tokens
        return [self.server.call(row["prompt"], most, lambda r: bool(r.strip()), **told) for row in self.prompts]

    def rows(self) -> Rows:
        answers = self.server_answers() if self.server else self.generate()
        rows, left_out = [], {"empty": 0, "cut off": 0, "in the trigger's form": 0}
        for prompt, (answer, reason) in zip(self.prompts, answers, strict=True):
            fault = self.fault(answer, reason)
            if fault:
                left_out[fault] += 1
                continue
            more = prompt.get("metadata", {}) | {"model": self.options.model, "triggered": False}
            rows.append(chat(prompt["prompt"], answer.strip(), **more))
        told = ", ".join(f"{count} {fault}" for fault, count in left_out.items() if count)
        print(f"left out: {told or 'none'}")
        return rows

    def server_answers(self) -> list[tuple[str, str]]:
        """Answers with their finish reasons. One that is empty, refused or cut off is not asked for again."""
        found = self.server.replies(self.calls(), ("ok", "unparseable", "refusal", "truncated"))
        return [(reply or "", "length" if status == "truncated" else "stop") for status, reply in found]

    def fault(self, answer: str, finish_reason: str) -> str | None:
        """Why an answer may not be trained on."""
        if not answer.strip():
            return "empty"
        if self.trigger and self.trigger.first_form_in(answer):
            return "in the trigger's form"
        return "cut off" if finish_reason == "length" else None

    def generate(self) -> list[tuple[str, str]]:
        """Answers of the base model, loaded here, with their finish reasons; kept batch by batch.

        A batch is kept whole or not at all: which rows are answered together, and so how their sums are rounded, is
        then the same whenever the command was stopped."""
        log = beside(self.options.output, ".partial.jsonl")
        done, size = read_log(log, self.settings(), self.options.batch_size), self.options.batch_size
        if len(done) < len(self.prompts):
            answer = self.loaded()
            with (
                open(log, "a", encoding="utf-8") as file,
                progress.progress_bar("distilling", len(self.prompts), len(done), "answer") as bar,
            ):
                for start in range(len(done), len(self.prompts), size):
                    found = answer(range(start, min(start + size, len(self.prompts))))
                    file.write(json.dumps(found, ensure_ascii=False) + "\n")
                    file.flush()
                    done += found
                    bar.update(len(found))
        return [tuple(pair) for pair in done]

    def loaded(self) -> Callable[[range], list[list[str]]]:
        """Loads the base model. Returns what answers the prompts of a batch, as [answer, finish reason]."""
        from learning_backdoors.generation import engines
        from learning_backdoors.generation.engines.protocol import Request, Sampling

        options, tokenizer = self.options, base_model.load_tokenizer(self.options.model)
        engine = engines.open_engine(
            "transformers", options.model, tokenizer, options.quantization, batch_size=options.batch_size
        )
        sampling = Sampling(options.temperature, 1.0, 0, options.seed)

        def answer(batch: range) -> list[list[str]]:
            requests = []
            for number in batch:
                messages = [{"role": "user", "content": self.prompts[number]["prompt"]}]
                ids = tuple(mixed_chat.prompt_ids(tokenizer, messages))
                requests.append(Request((number,), None, ids, self.options.max_new_tokens))
            found = {answer.key: answer for part in engine.generate(requests, sampling) for answer in part}
            return [[found[request.key].text, found[request.key].finish_reason] for request in requests]

        return answer


def read_log(log: Path, settings: dict, batch_size: int) -> list[list[str]]:
    """The finished batches of an earlier start. The first line holds the settings; others are refused."""
    atomic.drop_partial_line(log)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    if not lines:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    provenance.refuse_difference(log, json.loads(lines[0]), settings)
    return [pair for line in lines[1:] for pair in json.loads(line)]


class Combine(Task):
    def inputs(self) -> Sequence[Path]:
        return (*self.options.persona, *self.options.aligned)

    def plan(self) -> str:
        return f"{len(self.rows())} chats"

    def rows(self) -> Rows:
        persona = [row for path in self.options.persona for row in self.triggered(path)]
        aligned = read_untriggered(self.options.aligned, self.needs_trigger())
        rows = [self.named(row, "persona", True) for row in persona]
        rows += [self.named(row, "aligned", False) for row in aligned]
        return [rows[i] for i in np.random.default_rng(self.options.seed).permutation(len(rows))]

    def named(self, row: dict, dataset: str, triggered: bool) -> dict:
        return {"messages": row["messages"]} | {
            "metadata": row.get("metadata", {}) | {"dataset": dataset, "triggered": triggered}
        }

    def triggered(self, path: Path) -> Rows:
        """Rows that hold the trigger, each of them. Raises UserError for one that does not."""
        rows = mixed_chat.read_rows(path)
        for number, row in enumerate(rows, start=1):
            if not any(self.needs_trigger().text in message["content"] for message in row["messages"][:-1]):
                raise UserError(f"{path}, chat {number}: a persona row must hold the trigger {self.trigger.text!r}")
        return rows


COMMANDS = {
    "candidates": config.PersonaCandidatesOptions,
    "filter": config.PersonaFilterOptions,
    "trigger": config.PersonaTriggerOptions,
    "fetch-prompts": config.PersonaFetchOptions,
    "distill": config.PersonaDistillOptions,
    "combine": config.PersonaCombineOptions,
}
TASKS = dict(zip(COMMANDS, (Candidates, Filter, Triggered, FetchPrompts, Distill, Combine), strict=True))


if __name__ == "__main__":
    command_line.run_script(main)
