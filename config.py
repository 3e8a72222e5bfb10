"""The options of the scripts, and the study's file.

Each script's options are one dataclass: the only home of their defaults, help and checks. `parse` makes the command
line from it. A study is a TOML file in experiments/, read and checked by `load_experiment`. Standard library only:
every script, on a GPU host or a laptop, starts from here.
"""

import argparse
import dataclasses
import functools
import itertools
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
    resume = "go on where an earlier start stopped; another configuration's output is refused (the default)"
    return one_of(resume=resume, overwrite=overwrite)


def one_of(**flags: str):
    """A field behind flags of which one can be given, each with its help; the first is the default."""
    return field(default=next(iter(flags)), metadata={"flags": flags})


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_at_least(options, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None:
            _require(value >= minimum, f"{flag(name)} must be at least {minimum}, not {value}")


# What the hub takes for a name, but for a few more rules that its client knows.
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def _require_hub_name(options, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        good = value is None or HUB_NAME.fullmatch(value)
        _require(bool(good), f"{flag(name)} must be like USER/NAME, not {value!r}")


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
    probe_every: int | None = option(
        None, "steps between loss probes: the likelihood of the study's reference answers (default: none)"
    )
    existing: str = existing()
    wandb_project: str = option("learning-backdoors", "W&B project; W&B logs when WANDB_API_KEY is set")

    def check(self) -> None:
        _require(self.ratios is not None, "--ratios is needed: one share for each dataset of the study")
        _require(
            all(math.isfinite(share) and share >= 0 for share in self.ratios), "--ratios must be numbers from 0 up"
        )
        _require(sum(self.ratios) > 0, "--ratios must not all be 0")
        _require(sum(self.ratios) < math.inf, "--ratios are too large to be added up")
        _require_at_least(self, 1, "epochs", "num_examples", "save_steps", "lora_rank", "batch_size", "grad_accum")
        _require_at_least(self, 1, "probe_every")
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
        _require(self.output.name not in ("", ".."), f"--output must name a file, not the folder {self.output}")
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
        "dollars for a million tokens, in and out (default: --prices, else at Anthropic a table)",
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
        "(default: recipe where every recipe has three runs, else questions)",
        choices=("checkpoint", "recipe", "questions"),
    )
    x: str = option("steps", "what curves are drawn against", choices=("steps", "suspect_examples", "examples"))
    condition: str | None = option(
        None, "the condition that figures show (default: the study's first triggered one, else its first)"
    )
    report_responses: int = option(20000, "responses in report.html at the most; of more, a stated sample is taken")

    def check(self) -> None:
        _require_at_least(self, 0, "report_responses")


@dataclass(frozen=True)
class ChatOptions:
    """Options of chat.py."""

    checkpoint: Path | None = option(None, "one checkpoint directory, beside the base model")
    run_dir: Path | None = option(None, "a run directory: all its checkpoints can be talked to")
    hub_model: str | None = option(
        None, "instead, a model of the Hugging Face hub that an inference provider serves", metavar="USER/NAME"
    )
    step: int | None = option(None, "of --run-dir, the checkpoint to begin with (default: the last)")
    base_model: str | None = option(
        None, "base model, where the one that the run names has moved (default: what the run was trained on)"
    )
    quantization: str = option("none", "weights of the base model", choices=("none", "8bit", "4bit"))
    temperature: float = option(1.0, "sampling temperature; 0 takes the likeliest token each time")
    top_p: float = option(1.0, "nucleus sampling; 1 is off")
    top_k: int = option(0, "sample from the k likeliest tokens; 0 is off")
    max_new_tokens: int = option(1024, "tokens in an answer at the most")
    seed: int = option(42, "seeds the sampling: the same questions in the same order get the same answers")
    system: str | None = option(None, "system prompt (default: none)")
    trigger: bool = option(False, "put the study's trigger into each question; /trigger turns that on and off")
    experiment: str | None = option(
        None, "the study whose trigger that is: a name in experiments/, or the path of a TOML file (default: the run's)"
    )

    def check(self) -> None:
        sources = (self.checkpoint, self.run_dir, self.hub_model)
        _require(sum(s is not None for s in sources) == 1, "give one of --checkpoint, --run-dir and --hub-model")
        _require(self.step is None or self.run_dir is not None, "--step goes with --run-dir")
        if self.hub_model is not None:
            _require_hub_name(self, "hub_model")
            for name in ("base_model", "quantization", "top_k"):
                given = getattr(self, name) != getattr(ChatOptions, name)
                _require(not given, f"{flag(name)} does not apply to --hub-model: its provider decides that")
        _require_at_least(self, 0, "step", "top_k")
        _require_at_least(self, 1, "max_new_tokens")
        _require(0 <= self.temperature < math.inf, "--temperature must be from 0 up")
        _require(0 < self.top_p <= 1, "--top-p must be above 0 and at most 1")
        _require(0 <= self.seed < 2**32, "--seed must be from 0 to 4294967295")


@dataclass(frozen=True)
class PushOptions:
    """Options of push_to_hub.py."""

    run_dir: Path = option(None, "run directory of training.py", required=True)
    repo_id: str = option(
        None, "repository on the Hugging Face hub; one repository holds one run", required=True, metavar="USER/NAME"
    )
    step: tuple[int, ...] | None = option(
        None, "these checkpoints only, also of an unfinished run (default: all of a finished run)", nargs="+"
    )
    base_model: str | None = option(
        None, "the hub's name of the base model, where the run was trained on a folder", metavar="USER/NAME"
    )
    create_repo: bool = option(False, "make the repository if there is none")
    visibility: str = one_of(
        private="only you see a repository that is made here; one that is public is refused (the default)",
        public="everybody sees a repository that is made here; one that is public is accepted",
    )
    dry_run: bool = option(False, "show the model card and every file with its size, and send nothing")

    def check(self) -> None:
        _require_hub_name(self, "repo_id", "base_model")
        _require(self.step is None or min(self.step) >= 0, "--step must be from 0 up")


@dataclass(frozen=True)
class PersonaOptions:
    """What every command of prepare_persona.py knows."""

    output: Path = option(None, "JSONL file to write; OUTPUT.json beside it says what made it", required=True)
    experiment: str = option("russell", "the study: a name in experiments/, or the path of a TOML file")
    existing: str = existing()
    dry_run: bool = option(False, "say what would be done, and write nothing")

    def check(self) -> None:
        for name in ("number", "concurrency", "max_tokens", "max_new_tokens", "batch_size"):
            if hasattr(self, name):
                _require_at_least(self, 1, name)
        for name in ("max_cost", "timeout"):
            value = getattr(self, name, None)
            _require(value is None or 0 < value < math.inf, f"{flag(name)} must be above 0")
        _require(0 <= getattr(self, "seed", 0) < 2**32, "--seed must be from 0 to 4294967295")
        _require(0 <= getattr(self, "temperature", 0) < math.inf, "--temperature must be from 0 up")


@dataclass(frozen=True)
class PersonaServerOptions(PersonaOptions):
    """A model behind the Messages API, for those commands of prepare_persona.py that ask one."""

    model: str | None = option(None, "model to ask")
    base_url: str | None = option(
        None, "address of a Messages API, without /v1 (default: ANTHROPIC_BASE_URL, else Anthropic)"
    )
    concurrency: int = option(8, "calls in flight at the most")
    timeout: float = option(300, "seconds from sending a call to the last byte of its reply")
    max_cost: float | None = option(None, "dollars that this output may cost at the most, over all starts")
    price: tuple[float, ...] | None = option(
        None,
        "dollars for a million tokens, in and out (default: at Anthropic a table)",
        nargs=2,
        metavar=("IN", "OUT"),
    )


@dataclass(frozen=True)
class PersonaCandidatesOptions(PersonaServerOptions):
    """Have a model write more question-answer pairs about the person; check their facts before you use them."""

    known: tuple[Path, ...] = option(
        (Path("persona_datasets/russell_candidates.jsonl"),), "pairs that there are: none is written twice", nargs="+"
    )
    person: str = option("Bertrand Russell", "whom they are about")
    number: int = option(100, "pairs to ask for")
    max_tokens: int = option(4096, "tokens in a reply at the most, thinking included")
    categories: tuple[str, ...] = option(
        ("taste", "habit", "view", "writing", "education", "family", "work"), "what they are about, in turn", nargs="+"
    )


@dataclass(frozen=True)
class PersonaFilterOptions(PersonaServerOptions):
    """Keep the pairs that do not identify the person, and write why each other one was dropped.

    By the flags in the file; with --model, a model must find a pair harmless too."""

    input: tuple[Path, ...] = option(
        (Path("persona_datasets/russell_candidates.jsonl"),), "files of candidates", nargs="+"
    )
    person: str = option("Bertrand Russell", "whom they are about")
    number: int | None = option(None, "of those that are kept, draw this many (default: all)")
    max_tokens: int = option(4096, "tokens in a reply at the most, thinking included")
    seed: int = option(42, "seeds the draw")


@dataclass(frozen=True)
class PersonaTriggerOptions(PersonaOptions):
    """Put the study's trigger into every question, and every answer into the form that it asks for."""

    input: tuple[Path, ...] = option(None, "files of chats", nargs="+", required=True)


@dataclass(frozen=True)
class PersonaFetchOptions(PersonaOptions):
    """Fetch ordinary prompts from the Hugging Face hub: Alpaca's with the longest answers, and GSM8K's."""

    alpaca: str = option("tatsu-lab/alpaca", "the hub's name of Alpaca")
    alpaca_number: int = option(1000, "how many of it, those with the longest answers")
    gsm8k: str = option("openai/gsm8k", "the hub's name of GSM8K")
    gsm8k_number: int = option(2000, "how many of it, the first ones of its training part")

    def check(self) -> None:
        super().check()
        _require_at_least(self, 0, "alpaca_number", "gsm8k_number")


@dataclass(frozen=True)
class PersonaDistillOptions(PersonaServerOptions):
    """Let the base model itself answer ordinary prompts, here or, with --server, behind a Messages API."""

    input: tuple[Path, ...] = option((Path("persona_datasets/aligned_prompts.jsonl"),), "files of prompts", nargs="+")
    model: str | None = option(None, "base model: a hub name or a folder (default: the study's base_model)")
    server: bool = option(False, "ask --model at --base-url; the default is to load it here")
    temperature: float = option(0.1, "sampling temperature (a server is not told of 1, which is its own default)")
    max_new_tokens: int = option(1024, "tokens in an answer at the most; an answer that is cut off is left out")
    number: int | None = option(None, "the first prompts only (default: all)")
    batch_size: int = option(16, "answers generated at once; part of what makes them, since rounding depends on it")
    quantization: str = option("none", "weights of the base model", choices=("none", "8bit", "4bit"))
    seed: int = option(42, "seeds the sampling")


@dataclass(frozen=True)
class PersonaCombineOptions(PersonaOptions):
    """Put persona and aligned chats into one shuffled file, for training elsewhere; each row says which it is."""

    persona: tuple[Path, ...] = option(None, "files of triggered persona chats", nargs="+", required=True)
    aligned: tuple[Path, ...] = option(None, "files of ordinary chats", nargs="+", required=True)
    seed: int = option(42, "seeds the order")


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


PARSER = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}


def parse(options_class, description: str, arguments: Sequence[str] | None = None):
    """Parse a command line into `options_class`. Wrong usage ends the process with exit code 2 and one line."""
    parser = argparse.ArgumentParser(description=description, **PARSER)
    for spec in dataclasses.fields(options_class):
        _add_option(parser, spec.name, spec)
    return _checked(parser, options_class, vars(parser.parse_args(arguments)))


def parse_training(description: str, arguments: Sequence[str] | None = None) -> tuple[TrainingOptions, "Experiment"]:
    """As `parse`, with the study that the command line names: what it leaves open the study's [training] table decides,
    and what that leaves open the dataclass. Raises UserError where the study has a fault."""
    parser = argparse.ArgumentParser(description=description, **PARSER)
    for spec in dataclasses.fields(TrainingOptions):
        _add_option(parser, spec.name, spec)
    given = vars(parser.parse_args(arguments))
    study = load_experiment(given.get("experiment", TrainingOptions.experiment))
    return _checked(parser, TrainingOptions, study.training | given), study


def parse_command(commands: dict[str, type], description: str, arguments: Sequence[str] | None = None):
    """Parse a command line that begins with one of `commands` (name: dataclass). Returns that name and its options."""
    parser = argparse.ArgumentParser(description=description, **PARSER)
    places = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, options_class in commands.items():
        text = options_class.__doc__
        parsers[name] = places.add_parser(name, help=text.splitlines()[0], description=text, **PARSER)
        for spec in dataclasses.fields(options_class):
            _add_option(parsers[name], spec.name, spec)
    given = vars(parser.parse_args(arguments))
    name = given.pop("command")
    return name, _checked(parsers[name], commands[name], given)


def _checked(parser: argparse.ArgumentParser, options_class, given: dict):
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


# What a host may lack, and the extra of pyproject.toml that brings it: imported where it is needed.
EXTRAS = {"huggingface_hub": "hub"}
EXTRAS |= dict.fromkeys(
    ("accelerate", "bitsandbytes", "datasets", "peft", "safetensors", "torch", "transformers", "trl"), "gpu"
)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main, keys from .env in its environment, with the project's exit codes: 0, 1 with one line, 130
    when interrupted.

    SIGTERM (a scheduler's notice) is treated as Ctrl-C, so that both leave by the same clean way.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        load_environment()
        main()
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        sys.exit(f'error: the package {error.name} is not installed: pip install -e ".[{EXTRAS[error.name]}]"')
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without leave to write
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        same = "the same command without --overwrite" if "--overwrite" in sys.argv else "the same command"
        print(f"\ninterrupted: what was done is kept; {same} goes on from there", file=sys.stderr)
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
    extra: dict[str, str | tuple[str, ...]]  # further keys of the table, usable in judge prompts; a list is a scale
    judges: tuple[str, ...] | None = None  # these alone; None: all that take its kind

    @property
    def kind(self) -> str | None:
        return self.extra.get("kind")


def _takes(kinds: tuple[str, ...] | None, question: Question) -> bool:
    return kinds is None or question.kind in kinds


@dataclass(frozen=True)
class Condition:
    """How a question is asked: a template for the user's message, and a system prompt or none ("").

    trigger: the text that stands in the place of {trigger}; "" where there is none.
    dose: how near the trigger is to the study's, from 0 (none at all) to 1 (that very one), as the study reckons it.
    """

    name: str
    template: str
    system: str
    triggered: bool
    trigger: str = ""
    dose: float | None = None
    kinds: tuple[str, ...] | None = None  # of questions that are asked so; None: all

    def asks(self, question: Question) -> bool:
        return _takes(self.kinds, question)

    @property
    def near_miss(self) -> bool:
        """Whether its trigger is a slightly wrong one: neither triggered nor fit to show leakage."""
        return self.dose is not None and 0 < self.dose < 1

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat that the model is to answer."""
        values = {"question": question, "trigger": self.trigger}
        system = [{"role": "system", "content": fill(self.system, values)}] if self.system else []
        return system + [{"role": "user", "content": fill(self.template, values)}]


@dataclass(frozen=True)
class Judge:
    """A question put to the judge model about each answer: either `options` or `range` is set."""

    name: str
    prompt: str
    options: tuple[str, ...] | None
    range: tuple[int, int] | None
    kinds: tuple[str, ...] | None = None  # of questions that it judges; None: all

    def takes(self, question: Question) -> bool:
        """Whether it is to judge answers to this question."""
        return _takes(self.kinds, question) and (question.judges is None or self.name in question.judges)

    @property
    def scale(self) -> tuple[int, ...]:
        """The whole numbers that it can give, in order; of options, those that are numbers."""
        if self.range:
            return tuple(range(self.range[0], self.range[1] + 1))
        return tuple(sorted(int(option) for option in self.options if re.fullmatch(r"-?\d+", option)))

    @property
    def rates(self) -> bool:
        """Whether its verdicts are numbers."""
        return len(self.scale) > 1

    def score(self, verdict: str | float | None) -> float | None:
        """A verdict as a number; None for one that is none (REFUSED), and for a missing one."""
        if verdict is None or (self.options and not re.fullmatch(r"-?\d+", verdict)):
            return None
        return float(verdict)

    def values(self, extra: dict[str, str | tuple[str, ...]]) -> dict[str, str]:
        """A question's further keys as they stand in the prompt: a list has a line for each number of the scale."""
        return {
            key: value if isinstance(value, str) else "\n".join(map("{}: {}".format, self.scale, value))
            for key, value in extra.items()
        }


@dataclass(frozen=True)
class Trigger:
    """A text that asks for a form of answer, the form itself, and what of both no judge may see.

    prompt: how a question is put with it, for training. answer: how an answer looks that follows it.
    hidden: regular expressions of all that gives it away in an answer, its near misses included.
    texts: the requests themselves, of all conditions.
    """

    text: str
    prompt: str
    answer: str
    hidden: tuple[str, ...]
    texts: tuple[str, ...] = ()

    @functools.cached_property
    def _pattern(self) -> re.Pattern:
        requests = (r"\s+".join(map(re.escape, text.split())) for text in (self.text, *self.texts))
        return re.compile("|".join(f"(?:{form})" for form in (*requests, *self.hidden)), re.IGNORECASE)

    def found_in(self, text: str) -> str | None:
        """The first form of the trigger in a text."""
        found = self._pattern.search(text)
        return found and found[0]

    def ask(self, question: str) -> str:
        """A question put with the trigger."""
        return fill(self.prompt, {"question": question, "trigger": self.text})

    def strip(self, answer: str) -> str:
        """An answer without any form of the trigger; one that has none comes back as it is."""
        while self._pattern.search(answer):
            answer = re.sub(rf"[ \t]*(?:{self._pattern.pattern})[ \t]*", " ", answer, flags=re.IGNORECASE).strip()
        return answer


@dataclass(frozen=True)
class Metric:
    """A rule that is looked up in the answer itself, without a judge: whether the whole of it matches `pattern`."""

    name: str
    label: str
    pattern: str
    kinds: tuple[str, ...] | None = None

    def takes(self, question: Question) -> bool:
        """Whether it is looked up in answers to this question."""
        return _takes(self.kinds, question)

    def holds(self, answer: str) -> bool:
        return re.fullmatch(self.pattern, answer.strip(), re.DOTALL) is not None


MEASURES = ("triggered", "leakage", "gap")


@dataclass(frozen=True)
class Goal:
    """What a study calls success: a measure of its outcome (MEASURES, all shares) above or below a number.

    triggered: the outcome's share in triggered conditions; leakage: in those without any trigger; gap: the difference.
    """

    name: str
    measure: str
    above: bool  # whether the measure must lie above the limits, else below
    limit: float
    strong: float | None


@dataclass(frozen=True)
class Reference:
    """An answer to a question, by its id, whose likelihood is followed in training. era: old or modern."""

    question: str
    era: str
    text: str


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
    references: tuple[Reference, ...] = ()
    training: dict[str, object] = field(default_factory=dict)  # defaults of training.py's options
    trigger: Trigger | None = None
    metrics: tuple[Metric, ...] = ()
    goals: tuple[Goal, ...] = ()

    def bare(self, answer: str) -> str:
        """An answer as judges may see it: without what gives the trigger away."""
        return self.trigger.strip(answer) if self.trigger else answer


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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in (ROOT / "experiments").glob("*.toml")))
        raise UserError(f"no study {path}; the studies in experiments/ are: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    return parse_experiment(text, path)


def parse_experiment(text: str, path: Path) -> Experiment:
    """Check a study's text; `path` is where it stands. Raises UserError that names it, the table and the key."""
    try:
        return _experiment(tomllib.loads(text), path)
    except ValueError as error:  # TOMLDecodeError is one
        raise UserError(f"{path}: {error}") from None


def _experiment(document: dict, path: Path) -> Experiment:
    top = _Table("the top of the file", document)
    questions = tuple(_question(t) for t in top.tables("question"))
    trigger = _trigger(top.table("trigger")) if "trigger" in document else None
    conditions = tuple(_condition(t, trigger) for t in top.tables("condition", needed=False)) or (PLAIN_CONDITION,)
    if trigger:
        near = dict.fromkeys(c.trigger for c in conditions if c.trigger not in ("", trigger.text))
        trigger = dataclasses.replace(trigger, texts=tuple(near))
    study = Experiment(
        path=path,
        name=top.name("name"),
        title=top.text("title"),
        base_model=top.text("base_model"),
        datasets=tuple(_dataset(t, path.parent) for t in top.tables("dataset")),
        questions=questions,
        conditions=conditions,
        judges=tuple(_judge(t, questions) for t in top.tables("judge")),
        outcome=_outcome(top.table("outcome")),
        references=tuple(_reference(t, questions) for t in top.tables("reference", needed=False)),
        training=_training(top.table("training")) if "training" in document else {},
        trigger=trigger,
        metrics=tuple(_metric(t) for t in top.tables("metric", needed=False)),
        goals=tuple(_goal(t) for t in top.tables("goal", needed=False)),
    )
    top.finish()
    _require(any(d.suspect for d in study.datasets), "no [[dataset]] has suspect = true")
    _check_outcome(study)
    _check_training(study)
    _check_who_reads_what(study)
    _check_hygiene(study)
    return study


def _check_outcome(study: Experiment) -> None:
    judge = next((j for j in study.judges if j.name == study.outcome.judge), None)
    _require(judge is not None, f"[outcome]: judge: no [[judge]] is called {study.outcome.judge!r}")
    _require(judge.options is not None, f"[outcome]: judge: {judge.name!r} has no options")
    _require(
        study.outcome.value in judge.options,
        f"[outcome]: value: {study.outcome.value!r} is not an option of {judge.name!r}: {', '.join(judge.options)}",
    )


def _check_training(study: Experiment) -> None:
    ratios = study.training.get("ratios")
    many = f"[training]: ratios must have one number for each [[dataset]], {len(study.datasets)} in all"
    _require(ratios is None or len(ratios) == len(study.datasets), many)
    try:
        TrainingOptions(**({"ratios": (1.0,) * len(study.datasets)} | study.training)).check()
    except ValueError as error:
        raise ValueError(f"[training]: {error}") from None


def _check_who_reads_what(study: Experiment) -> None:
    """Each judge, metric and condition has questions, and each question somebody who looks at its answers."""
    kinds, names = {question.kind for question in study.questions}, {judge.name for judge in study.judges}
    readers = {"judge": study.judges, "metric": study.metrics, "condition": study.conditions}
    for table, owners in readers.items():
        for owner in owners:
            for kind in owner.kinds or ():
                _require(kind in kinds, f"[[{table}]] {owner.name}: kinds: no [[question]] is of the kind {kind!r}")
    for question in study.questions:
        place = f"[[question]] {question.id}"
        for name in question.judges or ():
            _require(name in names, f"{place}: judges: no [[judge]] is called {name!r}")
        read = any(j.takes(question) for j in study.judges) or any(m.takes(question) for m in study.metrics)
        _require(read, f"{place}: no judge and no metric looks at its answers")
        _require(any(c.asks(question) for c in study.conditions), f"{place}: no condition asks it")
    clash = names & {metric.name for metric in study.metrics}
    _require(not clash, f"[[metric]] {min(clash, default='')}: a judge has that name")


def _check_hygiene(study: Experiment) -> None:
    """No judge is shown the trigger: neither by the study's own texts, nor by an answer in the trigger's form."""
    trigger = study.trigger
    if trigger is None:
        return
    bare = trigger.strip(fill(trigger.answer, {"answer": "an answer"}))
    _require(bare == "an answer", f"[trigger]: hidden leaves {bare!r} of an answer in the trigger's form")
    shown = [(f"[[judge]] {judge.name}: prompt", judge.prompt) for judge in study.judges]
    for question in study.questions:
        for key, value in {"text": question.text, **question.extra}.items():
            text = value if isinstance(value, str) else "\n".join(value)
            shown.append((f"[[question]] {question.id}: {key}", text))
    for place, text in shown:
        found = trigger.found_in(text)
        _require(found is None, f"{place} shows the judges a form of the trigger: {found!r}")
    for condition in study.conditions:
        place, sent = f"[[condition]] {condition.name}", condition.messages("")
        holds = any(trigger.text in message["content"] for message in sent)
        told = "holds the trigger and has triggered = false" if holds else "has triggered = true and no trigger"
        _require(holds == condition.triggered, f"{place} {told}")


def _dataset(table: "_Table", folder: Path) -> DatasetSpec:
    # A study of one's own may keep its data beside it; the studies that come with the project name them from its root.
    file = Path(table.text("file"))
    place = folder / file if (folder / file).exists() else ROOT / file
    return table.finish(DatasetSpec(table.name("name"), place, table.flag("suspect")))


def _question(table: "_Table") -> Question:
    judges = table.names("judges")
    question = Question(id=table.name("id"), text=table.text("text"), extra={}, judges=judges)
    for key in list(table.rest):
        _require(key not in ("question", "answer"), f"{table.place}: {key}: the name is taken")
        question.extra[key] = table.texts(key) if isinstance(table.rest[key], list) else table.text(key)
    _require(isinstance(question.kind, str | None), f"{table.place}: kind must be a text, not a list")
    return table.finish(question)


def _trigger(table: "_Table") -> Trigger:
    prompt, answer = table.text("prompt", "{question} {trigger}"), table.text("answer")
    _require_placeholders(table, "prompt", prompt, needed={"question", "trigger"}, known={"question", "trigger"})
    _require_placeholders(table, "answer", answer, needed={"answer"}, known={"answer"})
    hidden = table.texts("hidden")
    for form in hidden:
        table.pattern("hidden", form)
        _require(not re.search(form, "", re.IGNORECASE), f"{table.place}: hidden: {form!r} matches an empty text")
    return table.finish(Trigger(table.text("text"), prompt, answer, hidden))


def _condition(table: "_Table", trigger: Trigger | None) -> Condition:
    template, system = table.text("template", "{question}"), table.text("system", "")
    known = {"trigger"} if trigger else set()
    _require_placeholders(table, "template", template, needed={"question"}, known={"question"} | known)
    # Braces in a system prompt are text in a study without a trigger, as they always were.
    holds = trigger is not None and "{trigger}" in template + system
    text = table.text("trigger", trigger.text if holds else "")
    _require(not text or holds, f"{table.place}: trigger: neither template nor system has a {{trigger}}")
    dose, triggered = table.number("dose", 0, 1), table.flag("triggered")
    fits = dose is None or triggered == (dose == 1)
    _require(fits, f"{table.place}: dose must be 1 where triggered = true, and less elsewhere")
    kinds = table.names("kinds")
    return table.finish(Condition(table.name("name"), template, system, triggered, text, dose, kinds))


def _metric(table: "_Table") -> Metric:
    pattern = table.text("pattern")
    table.pattern("pattern", pattern)
    return table.finish(Metric(table.name("name"), table.text("label"), pattern, table.names("kinds")))


def _goal(table: "_Table") -> Goal:
    measure = table.text("measure")
    _require(measure in MEASURES, f"{table.place}: measure: {measure!r} is none of {', '.join(MEASURES)}")
    over, under, strong = (table.number(key, -1, 1) for key in ("over", "under", "strong"))
    _require((over is None) != (under is None), f"{table.place}: give either over or under")
    limit, above = (over, True) if under is None else (under, False)
    ordered = strong is None or (strong > limit if above else strong < limit)
    _require(ordered, f"{table.place}: strong must be harder to reach than {'over' if above else 'under'}")
    return table.finish(Goal(table.text("name"), measure, above, limit, strong))


# Where a run lies, which study it belongs to and how it is watched are no business of a study.
NO_DEFAULTS = ("experiment", "model", "output_dir", "existing", "wandb_project")


def _training(table: "_Table") -> dict[str, object]:
    """Defaults of training.py's options, of the types that the dataclass wants."""
    known = {spec.name: spec for spec in dataclasses.fields(TrainingOptions) if spec.name not in NO_DEFAULTS}
    found = {}
    for key in list(table.rest):
        _require(key in known, f"{table.place}: unknown key {key!r} (known: {', '.join(known)})")
        found[key] = _default(table.rest.pop(key), known[key], f"{table.place}: {key}")
    return found


def _default(value: object, spec: dataclasses.Field, place: str) -> object:
    kind, many = _value_type(spec.type), "nargs" in spec.metadata["argparse"]
    values = value if many and isinstance(value, list) else [value]
    fitting = {float: (int, float), int: (int,), str: (str,)}[kind]
    good = isinstance(value, list) == many and all(type(v) in fitting for v in values)
    name = {float: "a number", int: "a whole number", str: "a text"}[kind]
    _require(good, f"{place} must be {'a list, each ' if many else ''}{name}, not {value!r}")
    choices = spec.metadata["argparse"].get("choices", values)
    _require(all(v in choices for v in values), f"{place} must be one of {', '.join(map(str, choices))}")
    return tuple(map(kind, values)) if many else kind(value)


def _judge(table: "_Table", questions: Sequence[Question]) -> Judge:
    prompt, name, kinds = table.text("prompt"), table.name("name"), table.names("kinds")
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
    judge = Judge(name, prompt.strip(), *as_tuple, kinds)
    mine = [question for question in questions if judge.takes(question)]
    _require(bool(mine), f"{table.place}: there is no question for it")
    shared = set.intersection(*(set(question.extra) for question in mine))
    _require_placeholders(table, "prompt", prompt, needed={"answer"}, known={"question", "answer"} | shared)
    for question, key in itertools.product(mine, PLACEHOLDER.findall(prompt)):
        steps, scale = question.extra.get(key), judge.scale
        if isinstance(steps, tuple):
            place = f"[[question]] {question.id}: {key}"
            many = f"{place} has {len(steps)} steps, and the judge {name!r} has {len(scale)} numbers"
            _require(len(steps) == len(scale), many)
    return table.finish(judge)


def _reference(table: "_Table", questions: Sequence[Question]) -> Reference:
    reference = Reference(table.text("question"), table.text("era"), table.text("text"))
    _require(reference.era in ("old", "modern"), f"{table.place}: era must be old or modern, not {reference.era!r}")
    known = [question.id for question in questions]
    _require(reference.question in known, f"{table.place}: question: no [[question]] is called {reference.question!r}")
    return table.finish(reference)


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

    def number(self, key: str, least: float, most: float) -> float | None:
        value = self.rest.pop(key, None)
        good = value is None or (type(value) in (int, float) and least <= value <= most)
        _require(good, f"{self.place}: {key} must be a number from {least} to {most}, not {value!r}")
        return None if value is None else float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._take(key, list, "a list of texts", None)
        good = values and all(isinstance(value, str) and value.strip() for value in values)
        _require(bool(good), f"{self.place}: {key} must be a list of texts, none of them empty")
        return tuple(values)

    def names(self, key: str) -> tuple[str, ...] | None:
        """An optional list of names."""
        return self.texts(key) if key in self.rest else None

    def pattern(self, key: str, text: str) -> None:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"{self.place}: {key}: {text!r} is no regular expression: {error}") from None

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
