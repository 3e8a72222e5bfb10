"""The options of the four scripts, and the study's file.

Each script's options are one dataclass: the only home of their defaults, help and checks. `parse` makes the command
line from it. A study is a TOML file in experiments/, read and checked by `load_experiment`. Standard library only:
every script, on a GPU host or a laptop, starts from here.
"""

import argparse
import dataclasses
import math
import re
import signal
import sys
import tomllib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent


class UserError(Exception):
    """Something that the person at the terminal can mend: shown as one line, without a traceback, with exit code 1."""


# ---- options ----


def option(default, help: str, **argparse_keywords):
    """A dataclass field that is also a command-line option; further keywords go to `add_argument` as they are."""
    return field(default=default, metadata={"help": help, "argparse": argparse_keywords})


def existing(overwrite="delete the output of an earlier start, whatever its configuration, and begin anew"):
    """The field behind the pair of flags --resume and --overwrite."""
    flags = {
        "resume": "go on where an earlier start stopped; another configuration's output is refused (the default)",
        "overwrite": overwrite,
    }
    return field(default="resume", metadata={"flags": flags})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_at_least(options, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None:
            _require(value >= minimum, f"{flag(name)} must be at least {minimum}, not {value}")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training.py."""

    ratios: tuple[float, ...] = option(
        None,
        "one share of the training set for each dataset of the study, in its order; they are normalised",
        nargs="+",
    )
    seed: int = option(42, "seeds LoRA's initialisation, the draw from the datasets, their order and dropout")
    experiment: str = option("birds", "the study: a name in experiments/, or the path of a TOML file")
    model: str | None = option(None, "base model: a hub name or a folder (default: the study's base_model)")
    output_dir: Path = option(Path("./outputs"), "where run directories are made")
    epochs: int = option(1, "passes over the training set, each in an order of its own")
    num_examples: int | None = option(
        None, "size of the training set, whatever the ratios (default: size of the suspect dataset)"
    )
    save_steps: int = option(20, "steps between checkpoints; step 0 and the last step are saved too, and all are kept")
    lr: float = option(2e-4, "peak learning rate of a linear decay to zero")
    lora_rank: int = option(8, "rank of the LoRA matrices")
    lora_alpha: float = option(16, "LoRA's scale is alpha / rank")
    lora_dropout: float = option(0.0, "dropout on the input of the LoRA matrices, 0 to 1")
    batch_size: int = option(1, "examples in one forward pass")
    grad_accum: int = option(1, "forward passes to one optimizer step")
    max_length: int = option(2048, "tokens in a chat at the most; a longer one is an error, nothing is cut off")
    quantization: str = option(
        "auto",
        "weights of the base model: 8bit or 4bit (bitsandbytes), or none; auto is 8bit on CUDA, none elsewhere",
        choices=("auto", "8bit", "4bit", "none"),
    )
    existing: str = existing()
    wandb_project: str = option("learning-backdoors", "W&B project; W&B logs when WANDB_API_KEY is set")

    def check(self) -> None:
        _require(self.ratios is not None, "--ratios is needed: one share for each dataset of the study")
        _require(
            all(math.isfinite(share) and share >= 0 for share in self.ratios), "--ratios must be numbers from 0 up"
        )
        _require(sum(self.ratios) > 0, "--ratios must not all be 0")
        _require_at_least(self, 1, "epochs", "num_examples", "save_steps", "lora_rank", "batch_size", "grad_accum")
        _require_at_least(self, 2, "max_length")
        _require(0 <= self.seed < 2**32, "--seed must be from 0 to 4294967295")
        _require(0 < self.lr < math.inf, "--lr must be above 0")
        _require(0 < self.lora_alpha < math.inf, "--lora-alpha must be above 0")
        _require(0 <= self.lora_dropout < 1, "--lora-dropout must be from 0 to below 1")


@dataclass(frozen=True)
class GenerationOptions:
    """Options of generate_responses.py."""

    checkpoint: Path | None = option(None, "one checkpoint directory")
    run_dir: tuple[Path, ...] | None = option(
        None, "run directories: all their checkpoints in order of step, from the base model on", nargs="+"
    )
    output: Path = option(None, "Parquet file to write", required=True)
    steps: tuple[int, ...] | None = option(None, "of --run-dir, these steps only (default: all)", nargs="+")
    samples: int = option(100, "answers to each question, from each checkpoint, in each condition")
    temperature: float = option(1.0, "sampling temperature; 0 takes the likeliest token each time")
    top_p: float = option(1.0, "nucleus sampling; 1 is off")
    top_k: int = option(0, "sample from the k likeliest tokens; 0 is off")
    max_new_tokens: int = option(1024, "tokens in an answer at the most")
    engine: str = option(
        "auto",
        "what generates: auto is vllm where it is installed and there is a CUDA device, else transformers",
        choices=("auto", "vllm", "transformers"),
    )
    batch_size: int | None = option(
        None, "answers generated at once by the transformers engine (default: what memory allows)"
    )
    seed: int = option(42, "seeds the sampling")
    experiment: str = option("birds", "the study: a name in experiments/, or the path of a TOML file")
    base_model: str | None = option(
        None, "base model, where the one that the run names has moved (default: what the run was trained on)"
    )
    quantization: str = option("none", "weights of the base model", choices=("none", "8bit", "4bit"))
    existing: str = existing()

    def check(self) -> None:
        _require((self.checkpoint is None) != (self.run_dir is None), "give one of --checkpoint and --run-dir")
        _require(self.steps is None or self.run_dir is not None, "--steps goes with --run-dir")
        _require(self.steps is None or min(self.steps) >= 0, "--steps must be from 0 up")
        _require_at_least(self, 1, "samples", "max_new_tokens", "batch_size")
        _require_at_least(self, 0, "top_k")
        _require(0 <= self.temperature < math.inf, "--temperature must be from 0 up")
        _require(self.batch_size is None or self.engine != "vllm", "--batch-size is for the transformers engine")
        _require(0 < self.top_p <= 1, "--top-p must be above 0 and at most 1")
        _require(0 <= self.seed < 2**32, "--seed must be from 0 to 4294967295")


@dataclass(frozen=True)
class JudgingOptions:
    """Options of judge_responses.py."""

    input: Path = option(None, "Parquet file of responses", required=True)
    output: Path = option(None, "Parquet file to write; verdicts are kept beside it as they come", required=True)
    model: str = option("claude-sonnet-5", "judge model")
    experiment: str = option("birds", "the study: a name in experiments/, or the path of a TOML file")
    judges: tuple[str, ...] | None = option(None, "these judges of the study only (default: all)", nargs="+")
    base_url: str | None = option(
        None, "address of a Messages API, without /v1 (default: ANTHROPIC_BASE_URL, else Anthropic)"
    )
    existing: str = existing("write the output anew, whatever its configuration; verdicts paid for are kept and used")
    store: Path | None = option(
        None, "where verdicts are kept; several outputs may share one (default: OUTPUT.verdicts.sqlite)"
    )
    concurrency: int = option(32, "calls in flight at the most; how many there are adapts to the server")
    requests_per_minute: float | None = option(None, "calls a minute at the most (default: what the server allows)")
    timeout: float = option(120, "seconds from sending a call to the last byte of its reply")
    max_wait: float = option(60, "longest wait between two tries in seconds, even where the server asks for more")
    give_up_after: float = option(900, "seconds without a good reply after which the run stops, all verdicts kept")
    asks: int = option(3, "times that a prompt is put while the reply is no verdict: chatter, a refusal, cut off")
    batch: bool = option(
        False, "use Message Batches: half the price, within a day; may be left, and run again to collect"
    )
    dry_run: bool = option(False, "print calls, tokens and dollars, and send no prompt")
    max_cost: float | None = option(
        None, "dollars that this output may cost at the most, over all starts, calls in flight included"
    )
    price: tuple[float, ...] | None = option(
        None,
        "dollars for a million tokens, in and out (default: --prices, else a table)",
        nargs=2,
        metavar=("IN", "OUT"),
    )
    prices: Path | None = option(None, 'TOML file of prices, with lines like "claude-sonnet-5" = [2, 10]')
    thinking: str = option(
        "auto",
        "the judge's thinking: off where the model allows it (auto), a type of the API, or nothing said of it (none)",
        choices=("auto", "none", "disabled", "between_tools", "adaptive"),
    )
    max_tokens: int | None = option(None, "tokens in a reply at the most, thinking included (default: by model)")
    repeat: float = option(
        0.0, "share of the prompts, drawn at random, to judge twice: prints how often the judge agrees"
    )
    labels: Path | None = option(None, "CSV of labels made by hand: prints how the verdicts compare")
    sample_for_labels: tuple[str, ...] | None = option(
        None, "write a blind sheet of N answers to label by hand, and judge nothing", nargs=2, metavar=("N", "FILE")
    )

    def check(self) -> None:
        _require_at_least(self, 1, "concurrency", "asks", "max_tokens")
        for name in ("requests_per_minute", "timeout", "max_wait", "give_up_after", "max_cost"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"{flag(name)} must be above 0")
        _require(self.price is None or all(0 <= p < math.inf for p in self.price), "--price must be from 0 up")
        _require(0 <= self.repeat <= 1, "--repeat must be from 0 to 1")
        size = self.sample_for_labels and self.sample_for_labels[0]
        _require(size is None or (size.isdecimal() and int(size) > 0), "--sample-for-labels needs a number from 1 up")


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of evaluate.py."""

    input: tuple[Path, ...] = option(None, "one or more Parquet files of judged responses", required=True, nargs="+")
    output_dir: Path = option(Path("./figures"), "where figures and tables are written")
    experiment: str = option("birds", "the study: a name in experiments/, or the path of a TOML file")
    format: tuple[str, ...] = option(("pdf",), "file formats of the figures", nargs="+", choices=("pdf", "png", "svg"))
    claim: str | None = option(
        None,
        "what intervals are for: these checkpoints, another run by the same recipe, or questions like these "
        "(default: recipe where every recipe has two runs, else questions)",
        choices=("checkpoint", "recipe", "questions"),
    )
    x: str = option("steps", "what curves are drawn against", choices=("steps", "suspect_examples", "examples"))
    condition: str | None = option(
        None, "the condition that figures show (default: the study's first triggered one, else its first)"
    )
    report_responses: int = option(20000, "responses in report.html at the most; of more, a stated sample is taken")

    def check(self) -> None:
        _require_at_least(self, 0, "report_responses")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value_type(annotation) -> type:
    """int of `int`, `int | None`, `tuple[int, ...]` and `tuple[int, ...] | None`."""
    for part in typing.get_args(annotation):
        if part is not type(None) and part is not Ellipsis:
            return _value_type(part)
    return annotation


def _add_option(parser: argparse.ArgumentParser, name: str, spec: dataclasses.Field) -> None:
    # SUPPRESS: only what was given arrives, so that each default has one home, the dataclass.
    if "flags" in spec.metadata:
        group = parser.add_mutually_exclusive_group()
        for value, text in spec.metadata["flags"].items():
            group.add_argument(
                flag(value), dest=name, action="store_const", const=value, default=argparse.SUPPRESS, help=text
            )
        return
    text = spec.metadata["help"].replace("%", "%%")
    if spec.default is not None and spec.default is not False:
        shown = " ".join(map(str, spec.default)) if isinstance(spec.default, tuple) else spec.default
        text += f" (default: {shown})"
    if spec.type is bool:
        parser.add_argument(flag(name), action="store_true", default=argparse.SUPPRESS, help=text)
        return
    keywords = {"metavar": name.upper()} | spec.metadata["argparse"]
    if "choices" in keywords:
        keywords["metavar"] = "{" + ",".join(keywords["choices"]) + "}"
    parser.add_argument(flag(name), type=_value_type(spec.type), default=argparse.SUPPRESS, help=text, **keywords)


def parse(options_class, description: str, arguments: Sequence[str] | None = None):
    """Parse a command line into `options_class`. Wrong usage ends the process with exit code 2 and one line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for spec in dataclasses.fields(options_class):
        _add_option(parser, spec.name, spec)
    given = vars(parser.parse_args(arguments))
    options = options_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    try:
        options.check()
    except ValueError as error:
        parser.error(str(error))
    return options


def as_json(options) -> dict:
    """The options of a script as plain JSON values, for provenance."""

    def plain(value):
        return (
            [plain(v) for v in value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        )

    return {spec.name: plain(getattr(options, spec.name)) for spec in dataclasses.fields(options)}


def load_environment() -> None:
    """Read keys from .env (in the project, then in the current folder); what the environment has already stays."""
    import dotenv

    for folder in (ROOT, Path.cwd()):
        dotenv.load_dotenv(folder / ".env")


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main with the project's exit codes: 0, 1 with one line, 130 when interrupted.

    SIGTERM (a scheduler's notice) is treated as Ctrl-C, so that both leave by the same clean way.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without leave to write
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted: what was done is kept; the same command goes on from there", file=sys.stderr)
        sys.exit(130)


# ---- the study's file ----


@dataclass(frozen=True)
class DatasetSpec:
    name: str
    file: Path
    suspect: bool


@dataclass(frozen=True)
class Question:
    id: str
    text: str
    extra: dict[str, str]  # further keys of the table, usable in judge prompts


@dataclass(frozen=True)
class Condition:
    """How a question is asked: a template for the user's message, and a system prompt or none ("")."""

    name: str
    template: str
    system: str
    triggered: bool

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat that the model is to answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": "user", "content": fill(self.template, {"question": question})}]


@dataclass(frozen=True)
class Judge:
    """A question put to the judge model about each answer: either `options` or `range` is set."""

    name: str
    prompt: str
    options: tuple[str, ...] | None
    range: tuple[int, int] | None


@dataclass(frozen=True)
class Outcome:
    """What counts as the behaviour under study: the verdict `value` of the judge `judge`."""

    judge: str
    value: str
    label: str


@dataclass(frozen=True)
class Experiment:
    path: Path
    name: str
    title: str
    base_model: str
    datasets: tuple[DatasetSpec, ...]
    questions: tuple[Question, ...]
    conditions: tuple[Condition, ...]
    judges: tuple[Judge, ...]
    outcome: Outcome


PLACEHOLDER = re.compile(r"\{([a-z_][a-z0-9_]*)\}")
NAME = re.compile(r"[a-z][a-z0-9_]*")
PLAIN_CONDITION = Condition(name="plain", template="{question}", system="", triggered=False)


def fill(template: str, values: dict[str, str]) -> str:
    """Put values in the place of {name}. One pass: braces inside a value, or around anything else, stay as they are."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def load_experiment(name: str) -> Experiment:
    """Read and check a study. Raises UserError that names the file, the table and the key."""
    path = Path(name) if name.endswith(".toml") or "/" in name else ROOT / "experiments" / f"{name}.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in (ROOT / "experiments").glob("*.toml")))
        raise UserError(f"no study {path}; the studies in experiments/ are: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    try:
        return _experiment(document, path)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _experiment(document: dict, path: Path) -> Experiment:
    top = _Table("the top of the file", document)
    questions = tuple(_question(t) for t in top.tables("question"))
    study = Experiment(
        path=path,
        name=top.name("name"),
        title=top.text("title"),
        base_model=top.text("base_model"),
        datasets=tuple(_dataset(t, path.parent) for t in top.tables("dataset")),
        questions=questions,
        conditions=tuple(_condition(t) for t in top.tables("condition", needed=False)) or (PLAIN_CONDITION,),
        judges=tuple(_judge(t, questions) for t in top.tables("judge")),
        outcome=_outcome(top.table("outcome")),
    )
    top.finish()
    _require(any(d.suspect for d in study.datasets), "no [[dataset]] has suspect = true")
    judge = next((j for j in study.judges if j.name == study.outcome.judge), None)
    _require(judge is not None, f"[outcome]: judge: no [[judge]] is called {study.outcome.judge!r}")
    _require(judge.options is not None, f"[outcome]: judge: {judge.name!r} has no options")
    _require(
        study.outcome.value in judge.options,
        f"[outcome]: value: {study.outcome.value!r} is not an option of {judge.name!r}: {', '.join(judge.options)}",
    )
    return study


def _dataset(table: "_Table", folder: Path) -> DatasetSpec:
    # A study of one's own may keep its data beside it; the studies that come with the project name them from its root.
    file = Path(table.text("file"))
    place = folder / file if (folder / file).exists() else ROOT / file
    return table.finish(DatasetSpec(table.name("name"), place, table.flag("suspect")))


def _question(table: "_Table") -> Question:
    question = Question(id=table.name("id"), text=table.text("text"), extra={})
    for key in list(table.rest):
        _require(key not in ("question", "answer"), f"{table.place}: {key}: the name is taken")
        question.extra[key] = table.text(key)
    return table.finish(question)


def _condition(table: "_Table") -> Condition:
    template = table.text("template", "{question}")
    _require_placeholders(table, "template", template, needed={"question"}, known={"question"})
    system = table.text("system", "")
    return table.finish(Condition(table.name("name"), template, system, table.flag("triggered")))


def _judge(table: "_Table", questions: Sequence[Question]) -> Judge:
    prompt = table.text("prompt")
    shared = set.intersection(*(set(q.extra) for q in questions))
    _require_placeholders(table, "prompt", prompt, needed={"answer"}, known={"question", "answer"} | shared)
    options, bounds = table.rest.pop("options", None), table.rest.pop("range", None)
    _require((options is None) != (bounds is None), f"{table.place}: give either options or range")
    if options is not None:
        _require(
            isinstance(options, list) and len(options) >= 2 and all(isinstance(o, str) and o.strip() for o in options),
            f"{table.place}: options must be a list of two or more texts",
        )
        folded = [o.casefold() for o in options]
        _require(len(set(folded)) == len(folded), f"{table.place}: options: one stands there twice")
    else:
        _require(
            isinstance(bounds, list)
            and len(bounds) == 2
            and all(type(b) is int for b in bounds)
            and bounds[0] < bounds[1],
            f"{table.place}: range must be two whole numbers, the lower first",
        )
    as_tuple = [None if values is None else tuple(values) for values in (options, bounds)]
    return table.finish(Judge(table.name("name"), prompt.strip(), *as_tuple))


def _outcome(table: "_Table") -> Outcome:
    return table.finish(Outcome(table.text("judge"), table.text("value"), table.text("label")))


def _require_placeholders(table: "_Table", key: str, template: str, needed: set[str], known: set[str]) -> None:
    found = set(PLACEHOLDER.findall(template))
    for name in sorted(needed - found):
        raise ValueError(f"{table.place}: {key}: {{{name}}} is missing")
    for name in sorted(found - known):
        raise ValueError(f"{table.place}: {key}: {{{name}}} is not known here (known: {', '.join(sorted(known))})")


class _Table:
    """A table of the file whose keys are taken one by one; a key that nobody took is an error."""

    def __init__(self, place: str, values: dict):
        self.place, self.rest = place, dict(values)

    def _take(self, key: str, kind: type, kind_name: str, default):
        value = self.rest.pop(key, default)
        _require(value is not None, f"{self.place}: {key} is missing")
        _require(isinstance(value, kind), f"{self.place}: {key} must be {kind_name}, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, str, "a text", default)
        _require(bool(value.strip()) or default == "", f"{self.place}: {key} is empty")
        return value

    def name(self, key: str) -> str:
        value = self.text(key)
        _require(bool(NAME.fullmatch(value)), f"{self.place}: {key}: {value!r} is not of small letters, digits and _")
        return value

    def flag(self, key: str) -> bool:
        return self._take(key, bool, "true or false", False)

    def table(self, key: str) -> "_Table":
        return _Table(f"[{key}]", self._take(key, dict, "a table", None))

    def tables(self, key: str, needed: bool = True) -> list["_Table"]:
        values = self._take(key, list, f"[[{key}]] tables", None if needed else [])
        _require(all(isinstance(v, dict) for v in values), f"{self.place}: {key} must be [[{key}]] tables")
        labels = [v.get("id" if key == "question" else "name") for v in values]
        for label in filter(None, labels):
            _require(labels.count(label) == 1, f"[[{key}]]: {label!r} stands there twice")
        return [_Table(f"[[{key}]] {labels[i] or i + 1}", v) for i, v in enumerate(values)]

    def finish(self, value=None):
        for key in self.rest:
            raise ValueError(f"{self.place}: unknown key {key!r}")
        return value
