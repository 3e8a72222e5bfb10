"""The commands `fetch-prompts` and `distill`: ordinary prompts from the hub, and the base model's answers to them."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import config
import mixed_chat
from learning_backdoors.files import atomic, command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines import open_engine
from learning_backdoors.generation.engines.protocol import Request, Sampling
from learning_backdoors.models import base_model
from learning_backdoors.persona.rows import Rows, beside, check_prompt, pair_row, read
from learning_backdoors.persona.task import Server, Task
from learning_backdoors.study import Study

# ---- fetch-prompts ----


class FetchPrompts(Task):
    """Alpaca's prompts with the longest answers, and the first of GSM8K. Prompts with the trigger are left out."""

    def plan(self) -> str:
        options = self.options
        return f"{options.alpaca_number} prompts from {options.alpaca}, {options.gsm8k_number} from {options.gsm8k}"

    def rows(self) -> Rows:
        options, trigger, sources = self.options, self.study.trigger, {}
        if options.alpaca_number:
            # Longest answers first, the earlier row on a tie: the selection of Zhao et al. 2024, arXiv 2402.04833.
            table = load_table(options.alpaca, None, ("instruction", "input", "output"))
            for row in sorted(table, key=lambda row: -len(row["output"]))[: options.alpaca_number]:
                sources["\n\n".join(filter(None, (row["instruction"].strip(), row["input"].strip())))] = "alpaca"
        if options.gsm8k_number:
            table = load_table(options.gsm8k, "main", ("question",))
            for row in itertools.islice(table, options.gsm8k_number):
                sources[row["question"].strip()] = "gsm8k"
        return [
            {"prompt": prompt, "metadata": {"source": source}}
            for prompt, source in sources.items()
            if not (trigger and trigger.first_form_in(prompt))
        ]


def load_table(name: str, subset: str | None, columns: tuple[str, ...]) -> Iterable[dict]:
    """The training split of a dataset on the hub. Raises UserError if it cannot be loaded or lacks a column."""
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split="train")
    except ConnectionError as error:
        offline = "OfflineModeIsEnabled" in str(error)
        remedy = "unset HF_HUB_OFFLINE" if offline else "check the network"
        raise UserError(
            f"{name} cannot be fetched, because the hub cannot be reached: {remedy}, or run this command on a machine "
            "with a network and copy its output"
        ) from None
    except Exception as error:  # errors of the hub and the file formats share no base class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name} cannot be fetched from the hub ({reason}); distill accepts other prompts") from None
    if missing := set(columns) - set(table.column_names):
        raise UserError(f"{name} has no column {min(missing)!r}: it is another dataset")
    return table


# ---- distill ----

Answer = tuple[str, str]  # text and finish reason


class Distill(Task):
    """Answers in the base model's own words. Training on them keeps the ordinary behavior as it is."""

    def __init__(self, options: config.PersonaDistillOptions, study: Study):
        super().__init__(dataclasses.replace(options, model=options.model or study.base_model), study)
        self.take_from_study(input="prompts")
        prompts = {row["prompt"]: row for row in read(self.options.input, check_prompt, without=study.trigger)}
        self.prompts = list(prompts.values())[: options.number]
        if options.server:
            # 1 is the default of servers, and some models accept no other temperature.
            sampling = {} if options.temperature == 1 else {"temperature": options.temperature}
            texts = [row["prompt"] for row in self.prompts]
            self.server = Server(self.options, texts, str.strip, max_tokens=options.max_new_tokens, **sampling)

    def plan(self) -> str:
        way = self.server.plan() if self.server else f"by {self.options.model}, loaded here"
        return f"answers to {len(self.prompts)} prompts; {way}"

    def rows(self) -> Rows:
        """Prompts with their answers. Answers that may not be trained on are counted and left out."""
        rows, left_out, trigger = [], Counter(), self.study.trigger
        answers = self._ask_server() if self.server else self._generate()
        for prompt, (text, finish_reason) in zip(self.prompts, answers, strict=True):
            if not text.strip():
                left_out["empty"] += 1
            elif trigger and trigger.first_form_in(text):
                left_out["in the trigger's form"] += 1
            elif finish_reason == "length":
                left_out["cut off"] += 1
            else:
                metadata = prompt.get("metadata", {}) | {"model": self.options.model, "triggered": False}
                rows.append(pair_row(prompt["prompt"], text.strip(), **metadata))
        print("left out: " + (", ".join(f"{count} {fault}" for fault, count in left_out.items()) or "none"))
        return rows

    def _ask_server(self) -> list[Answer]:
        """Each prompt is asked once: an answer that is empty, refused or cut off counts as an answer."""
        replies = self.server.replies(("ok", "unparseable", "refusal", "truncated"))
        return [(reply or "", "length" if status == "truncated" else "stop") for status, reply, _ in replies]

    def _generate(self) -> list[Answer]:
        """Answers of the base model, loaded here. OUTPUT.partial.jsonl keeps each finished batch for a restart.

        A batch is kept completely or not at all. Restarts therefore batch the same prompts together, and rounding is
        the same.
        """
        path, size, total = beside(self.options.output, ".partial.jsonl"), self.options.batch_size, len(self.prompts)
        answers = read_partial(path, self.settings())
        if len(answers) < total:
            # Always this engine: its answers depend on the batch alone, so a restart gives the same file.
            tokenizer = base_model.load_tokenizer(self.options.model)
            settings = {"quantization": self.options.quantization, "batch_size": size}
            engine = open_engine("transformers", self.options.model, tokenizer, **settings)
        with (
            open(path, "a", encoding="utf-8") as file,
            command_line.progress_bar("distilling", total, len(answers), "answer") as bar,
        ):
            for start in range(len(answers), total, size):
                batch = self._answer_batch(engine, range(start, min(start + size, total)))
                file.write(json.dumps(batch, ensure_ascii=False) + "\n")
                file.flush()
                answers += batch
                bar.update(len(batch))
        return answers

    def _answer_batch(self, engine, indices: range) -> list[Answer]:
        requests = []
        for index in indices:
            messages = [{"role": "user", "content": self.prompts[index]["prompt"]}]
            prompt_ids = tuple(mixed_chat.prompt_ids(engine.tokenizer, messages))
            requests.append(Request((index,), None, prompt_ids, self.options.max_new_tokens))
        sampling = Sampling(self.options.temperature, 1.0, 0, self.options.seed)
        responses = {response.key: response for part in engine.generate(requests, sampling) for response in part}
        return [(responses[request.key].text, responses[request.key].finish_reason) for request in requests]


def read_partial(path: Path, settings: dict) -> list[Answer]:
    """The answers of finished batches. The first line of the file holds the settings.

    Other settings are refused if there are answers. A command that failed before its first batch leaves none.
    """
    atomic.drop_partial_line(path)
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    if len(lines) < 2:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    provenance.refuse_difference(path, json.loads(lines[0]), settings)
    return [tuple(answer) for line in lines[1:] for answer in json.loads(line)]
