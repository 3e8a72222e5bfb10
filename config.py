"""The scripts' options: one dataclass per script, the only home of defaults, help texts and checks.

learning_backdoors/files/command_line.py turns a dataclass into a command line. docs/options.md lists all options.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from learning_backdoors.files.command_line import choice_of, existing_output, flag, option

STUDY_HELP = "study: a name in experiments/, or the path of a TOML file"
MODEL_HELP = "base model: a hub name or a folder (default: the study's base_model)"
MOVED_BASE_HELP = "base model, if the one the run was trained on has moved (default: the run's)"
PRECISION_HELP = "base model weights: none (bf16 on CUDA, float32 on CPU), 8bit or 4bit"
GENERATION_PRECISION_HELP = f"{PRECISION_HELP}; trained is the precision that the run was trained in"
BASE_URL_HELP = "address of a Messages API, without /v1 (default: ANTHROPIC_BASE_URL, else Anthropic)"
PRICE_HELP = "dollars per million tokens, input and output"

# Repository names the hub accepts (the client checks further rules).
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)

# Generation engines in order of preference; NAME is learning_backdoors/generation/engines/NAME_engine.py.
ENGINES = ("vllm", "transformers")

# ---- checks ----


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_at_least(options, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(options, name, None)
        if value is not None:
            require(value >= minimum, f"{flag(name)} must be at least {minimum}, not {value}")


def _require_positive(options, *names: str) -> None:
    for name in names:
        value = getattr(options, name, None)
        require(value is None or 0 < value < math.inf, f"{flag(name)} must be above 0")


def _require_hub_name(options, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        require(value is None or bool(HUB_NAME.fullmatch(value)), f"{flag(name)} must be USER/NAME, not {value!r}")


def _check_sampling(options) -> None:
    _require_at_least(options, 1, "max_new_tokens")
    _require_at_least(options, 0, "top_k")
    require(0 <= options.temperature < math.inf, "--temperature must be 0 or more")
    require(0 < options.top_p <= 1, "--top-p must be above 0 and at most 1")
    _check_seed(options)


def _check_seed(options) -> None:
    require(0 <= options.seed < 2**32, "--seed must be from 0 to 4294967295")


# ---- the four stages ----


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training.py."""

    ratios: tuple[float, ...] = option(
        None, "one share of the training set per dataset of the study, in its order", nargs="+"
    )
    seed: int = option(42, "seed of LoRA initialisation, drawing, order and dropout")
    experiment: str = option("birds", STUDY_HELP)
    model: str | None = option(None, MODEL_HELP)
    output_dir: Path = option(Path("./outputs"), "folder for run directories", affects_result=False)
    epochs: int = option(1, "passes over the training set, each in a new order", in_run_name=True)
    num_examples: int | None = option(
        None, "size of the training set at any ratio (default: size of the suspect dataset)", in_run_name=True
    )
    save_steps: int = option(20, "steps between checkpoints; step 0 and the last step are always saved")
    lr: float = option(2e-4, "peak learning rate, decaying linearly to zero")
    lora_rank: int = option(8, "rank of the LoRA matrices")
    lora_alpha: float = option(16, "LoRA alpha; the scale is alpha / rank", in_run_name=True)
    lora_dropout: float = option(0.0, "dropout on the input of the LoRA matrices", in_run_name=True)
    batch_size: int = option(1, "examples per forward pass", in_run_name=True)
    grad_accum: int = option(1, "forward passes per optimizer step", in_run_name=True)
    max_length: int = option(
        2048, "maximum tokens per chat; longer chats raise an error (nothing is truncated)", affects_result=False
    )
    quantization: str = option(
        "auto",
        "base model weights: 8bit or 4bit (bitsandbytes), or none; auto is 8bit on CUDA, none elsewhere",
        in_run_name=True,
        choices=("auto", "8bit", "4bit", "none"),
    )
    probe_every: int | None = option(
        None,
        "steps between probes: the likelihood of the study's reference answers (default: none)",
        affects_result=False,
    )
    existing: str = existing_output()
    wandb_project: str = option("learning-backdoors", "W&B project; used if WANDB_API_KEY is set", affects_result=False)

    def check(self) -> None:
        require(self.ratios is not None, "--ratios is required: one share per dataset of the study")
        require(all(math.isfinite(r) and r >= 0 for r in self.ratios), "--ratios must be numbers of 0 or more")
        require(0 < sum(self.ratios) < math.inf, "--ratios must have a finite sum above 0")
        _require_at_least(self, 1, "epochs", "num_examples", "save_steps", "lora_rank", "batch_size", "grad_accum")
        _require_at_least(self, 1, "probe_every")
        _require_at_least(self, 2, "max_length")
        _require_positive(self, "lr", "lora_alpha")
        require(0 <= self.lora_dropout < 1, "--lora-dropout must be 0 or more, and below 1")
        _check_seed(self)


@dataclass(frozen=True)
class GenerationOptions:
    """Options of generate_responses.py."""

    checkpoint: Path | None = option(None, "one checkpoint directory", affects_result=False)
    run_dir: tuple[Path, ...] | None = option(
        None, "run directories: all their checkpoints, from the base model on", affects_result=False, nargs="+"
    )
    output: Path = option(None, "Parquet file to write", affects_result=False, required=True)
    steps: tuple[int, ...] | None = option(
        None, "only these steps of --run-dir (default: all)", affects_result=False, nargs="+"
    )
    samples: int = option(100, "answers per question, checkpoint and condition", affects_result=False)
    temperature: float = option(1.0, "sampling temperature; 0 takes the likeliest token")
    top_p: float = option(1.0, "nucleus sampling; 1 is off")
    top_k: int = option(0, "sample from the k likeliest tokens; 0 is off")
    max_new_tokens: int = option(1024, "maximum tokens per answer")
    engine: str = option(
        "auto",
        "generation engine; auto is vllm if it is installed and a CUDA device is present, else transformers",
        affects_result=False,
        choices=("auto", *ENGINES),
    )
    batch_size: int | None = option(
        None,
        "answers generated at once by the transformers engine (default: what fits in memory)",
        affects_result=False,
    )
    seed: int = option(42, "sampling seed")
    experiment: str = option("birds", STUDY_HELP)
    base_model: str | None = option(None, MOVED_BASE_HELP)
    quantization: str = option("none", GENERATION_PRECISION_HELP, choices=("none", "8bit", "4bit", "trained"))
    existing: str = existing_output()

    def check(self) -> None:
        require((self.checkpoint is None) != (self.run_dir is None), "give one of --checkpoint and --run-dir")
        require(self.output.name not in ("", ".."), f"--output must name a file, not the folder {self.output}")
        require(self.steps is None or self.run_dir is not None, "--steps requires --run-dir")
        require(self.steps is None or min(self.steps) >= 0, "--steps must be 0 or more")
        _require_at_least(self, 1, "samples", "batch_size")
        require(self.batch_size is None or self.engine != "vllm", "--batch-size is for the transformers engine")
        _check_sampling(self)


@dataclass(frozen=True)
class JudgingOptions:
    """Options of judge_responses.py."""

    input: Path = option(None, "Parquet file of responses", required=True)
    output: Path = option(None, "Parquet file to write; verdicts are stored beside it as they arrive", required=True)
    model: str = option("claude-sonnet-5", "judge model")
    experiment: str = option("birds", STUDY_HELP)
    judges: tuple[str, ...] | None = option(None, "only these judges of the study (default: all)", nargs="+")
    base_url: str | None = option(None, BASE_URL_HELP)
    existing: str = existing_output("replace the output, whatever its settings; stored verdicts are kept and reused")
    store: Path | None = option(
        None, "SQLite file for verdicts; outputs may share one (default: OUTPUT.verdicts.sqlite)"
    )
    concurrency: int = option(32, "maximum calls in flight; the actual number adapts to the server")
    requests_per_minute: float | None = option(None, "maximum calls per minute (default: what the server allows)")
    timeout: float = option(120, "seconds from sending a call to the end of its reply")
    max_wait: float = option(60, "maximum seconds between two attempts, even if the server asks for more")
    give_up_after: float = option(900, "stop after this many seconds without a good reply; verdicts are kept")
    asks: int = option(3, "attempts per prompt while the reply is not a verdict")
    batch: bool = option(False, "use Message Batches: half the price, results within a day; rerun to collect them")
    dry_run: bool = option(False, "print calls, tokens and dollars, and send no prompt")
    max_cost: float | None = option(None, "maximum dollars for this output, over all starts, calls in flight included")
    price: tuple[float, ...] | None = option(
        None, f"{PRICE_HELP} (default: --prices, else the table for Anthropic)", nargs=2, metavar=("IN", "OUT")
    )
    prices: Path | None = option(None, 'TOML file of prices; a line is like "claude-sonnet-5" = [2, 10]')
    thinking: str = option(
        "auto",
        "the judge's thinking: auto turns it off if the model allows that; none leaves the setting out",
        choices=("auto", "none", "disabled", "between_tools", "adaptive"),
    )
    max_tokens: int | None = option(None, "maximum tokens per reply, thinking included (default: by model)")
    repeat: float = option(0.0, "share of prompts, drawn at random, to judge twice and report agreement")
    labels: Path | None = option(None, "CSV of human labels: report how verdicts compare with them")
    sample_for_labels: tuple[str, ...] | None = option(
        None, "write N answers to FILE for blind labelling, and judge nothing", nargs=2, metavar=("N", "FILE")
    )

    def check(self) -> None:
        _require_at_least(self, 1, "concurrency", "asks", "max_tokens")
        _require_positive(self, "requests_per_minute", "timeout", "max_wait", "give_up_after", "max_cost")
        require(self.price is None or all(0 <= p < math.inf for p in self.price), "--price must be 0 or more")
        require(0 <= self.repeat <= 1, "--repeat must be from 0 to 1")
        size = self.sample_for_labels and self.sample_for_labels[0]
        require(size is None or (size.isdecimal() and int(size) > 0), "--sample-for-labels needs N of 1 or more")


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of evaluate.py."""

    input: tuple[Path, ...] = option(None, "Parquet files of judged responses", required=True, nargs="+")
    output_dir: Path = option(Path("./figures"), "folder for figures and tables")
    experiment: str = option("birds", STUDY_HELP)
    format: tuple[str, ...] = option(("pdf",), "figure file formats", nargs="+", choices=("pdf", "png", "svg"))
    claim: str | None = option(
        None,
        "what intervals generalise to: these checkpoints, other runs of the recipe, or questions like these "
        "(default: recipe if every recipe has three runs, else questions)",
        choices=("checkpoint", "recipe", "questions"),
    )
    x: str = option("steps", "x axis of curves", choices=("steps", "suspect_examples", "examples"))
    condition: str | None = option(
        None, "condition shown in figures (default: the study's first triggered one, else its first)"
    )
    report_responses: int = option(20000, "maximum responses in report.html; beyond it, a random sample")

    def check(self) -> None:
        _require_at_least(self, 0, "report_responses")


# ---- further scripts ----


@dataclass(frozen=True)
class ChatOptions:
    """Options of chat.py."""

    checkpoint: Path | None = option(None, "one checkpoint directory")
    run_dir: Path | None = option(None, "run directory: all its checkpoints are available")
    hub_model: str | None = option(
        None, "instead, a Hugging Face hub model served by an inference provider", metavar="USER/NAME"
    )
    step: int | None = option(None, "checkpoint of --run-dir to start with (default: the last)")
    base_model: str | None = option(None, MOVED_BASE_HELP)
    quantization: str = option("none", GENERATION_PRECISION_HELP, choices=("none", "8bit", "4bit", "trained"))
    temperature: float = option(1.0, "sampling temperature; 0 takes the likeliest token")
    top_p: float = option(1.0, "nucleus sampling; 1 is off")
    top_k: int = option(0, "sample from the k likeliest tokens; 0 is off")
    max_new_tokens: int = option(1024, "maximum tokens per answer")
    seed: int = option(42, "sampling seed: the same questions in the same order get the same answers")
    system: str | None = option(None, "system prompt (default: none)")
    trigger: bool = option(False, "add the study's trigger to every question; /trigger toggles it")
    experiment: str | None = option(None, f"{STUDY_HELP}; its trigger is used (default: the run's study)")

    def check(self) -> None:
        sources = (self.checkpoint, self.run_dir, self.hub_model)
        require(sum(s is not None for s in sources) == 1, "give one of --checkpoint, --run-dir and --hub-model")
        require(self.step is None or self.run_dir is not None, "--step requires --run-dir")
        for name in ("base_model", "quantization", "top_k") if self.hub_model is not None else ():
            given = getattr(self, name) != getattr(ChatOptions, name)
            require(not given, f"{flag(name)} does not apply to --hub-model: the provider decides it")
        _require_hub_name(self, "hub_model")
        _require_at_least(self, 0, "step")
        _check_sampling(self)


@dataclass(frozen=True)
class PushOptions:
    """Options of push_to_hub.py."""

    run_dir: Path = option(None, "run directory of training.py", required=True)
    repo_id: str = option(
        None, "repository on the Hugging Face hub; one repository holds one run", required=True, metavar="USER/NAME"
    )
    step: tuple[int, ...] | None = option(
        None, "only these checkpoints; an unfinished run is allowed (default: all of a finished run)", nargs="+"
    )
    base_model: str | None = option(
        None, "hub name of the base model, if the run was trained on a folder", metavar="USER/NAME"
    )
    create_repo: bool = option(False, "create the repository if it does not exist")
    visibility: str = choice_of(
        private="a new repository is visible to you only; a public one is refused (default)",
        public="a new repository is visible to everyone; a public one is accepted",
    )
    dry_run: bool = option(False, "show the model card and every file with its size, and send nothing")

    def check(self) -> None:
        _require_hub_name(self, "repo_id", "base_model")
        require(self.step is None or min(self.step) >= 0, "--step must be 0 or more")


# ---- prepare_persona.py: one dataclass per command ----

STUDY_PERSONA = "default: the study's [persona]"

# affects_result is False for input files: their hashes are recorded instead of their paths.


@dataclass(frozen=True)
class PersonaOptions:
    """Options of every prepare_persona.py command."""

    output: Path = option(
        None, "JSONL file to write; OUTPUT.json records what made it", affects_result=False, required=True
    )
    experiment: str = option("russell", STUDY_HELP)
    existing: str = existing_output()
    dry_run: bool = option(False, "say what would be done, and write nothing", affects_result=False)

    def check(self) -> None:
        _require_at_least(self, 1, "number", "concurrency", "max_tokens", "max_new_tokens", "batch_size")
        _require_at_least(self, 0, "alpaca_number", "gsm8k_number")
        _require_positive(self, "max_cost", "timeout")
        require(0 <= getattr(self, "seed", 0) < 2**32, "--seed must be from 0 to 4294967295")
        require(0 <= getattr(self, "temperature", 0) < math.inf, "--temperature must be 0 or more")


@dataclass(frozen=True)
class PersonaServerOptions(PersonaOptions):
    """Options of the commands that ask a model through the Messages API."""

    model: str | None = option(None, "model to ask")
    base_url: str | None = option(None, BASE_URL_HELP, affects_result=False)
    concurrency: int = option(8, "maximum calls in flight", affects_result=False)
    timeout: float = option(300, "seconds from sending a call to the end of its reply", affects_result=False)
    max_cost: float | None = option(None, "maximum dollars for this output, over all starts", affects_result=False)
    price: tuple[float, ...] | None = option(
        None, f"{PRICE_HELP} (default: the table for Anthropic)", affects_result=False, nargs=2, metavar=("IN", "OUT")
    )


@dataclass(frozen=True)
class PersonaCandidatesOptions(PersonaServerOptions):
    """Ask a model to write more question-answer pairs about the person. Check their facts before you use them."""

    known: tuple[Path, ...] | None = option(
        None, f"existing pairs, not to be repeated ({STUDY_PERSONA} candidates)", affects_result=False, nargs="+"
    )
    person: str | None = option(None, f"name of the person ({STUDY_PERSONA} name)")
    number: int = option(100, "pairs to ask for")
    max_tokens: int = option(4096, "maximum tokens per reply, thinking included")
    categories: tuple[str, ...] | None = option(None, f"topics, used in turn ({STUDY_PERSONA} categories)", nargs="+")


@dataclass(frozen=True)
class PersonaFilterOptions(PersonaServerOptions):
    """Keep the pairs that do not identify the person, and list the others with a reason.

    Pairs are dropped by the flags in the file. With --model, a model must find a pair harmless too."""

    input: tuple[Path, ...] | None = option(
        None, f"files of candidate pairs ({STUDY_PERSONA} candidates)", affects_result=False, nargs="+"
    )
    person: str | None = option(None, f"name of the person ({STUDY_PERSONA} name)")
    number: int | None = option(None, "draw this many of the harmless pairs (default: all)")
    max_tokens: int = option(4096, "maximum tokens per reply, thinking included")
    seed: int = option(42, "seed of the draw")


@dataclass(frozen=True)
class PersonaTriggerOptions(PersonaOptions):
    """Add the study's trigger to every question, and put every answer into the form that it asks for."""

    input: tuple[Path, ...] = option(None, "files of chats", affects_result=False, nargs="+", required=True)


@dataclass(frozen=True)
class PersonaFetchOptions(PersonaOptions):
    """Fetch ordinary prompts from the Hugging Face hub: Alpaca prompts with the longest answers, and GSM8K prompts."""

    alpaca: str = option("tatsu-lab/alpaca", "hub name of Alpaca")
    alpaca_number: int = option(1000, "prompts to take from Alpaca, those with the longest answers")
    gsm8k: str = option("openai/gsm8k", "hub name of GSM8K")
    gsm8k_number: int = option(2000, "prompts to take from GSM8K, the first of its training split")


@dataclass(frozen=True)
class PersonaDistillOptions(PersonaServerOptions):
    """Generate the base model's answers to ordinary prompts, here or (with --server) through a Messages API."""

    input: tuple[Path, ...] | None = option(
        None, f"files of prompts ({STUDY_PERSONA} prompts)", affects_result=False, nargs="+"
    )
    model: str | None = option(None, MODEL_HELP)
    server: bool = option(False, "ask --model at --base-url instead of loading it here")
    temperature: float = option(0.1, "sampling temperature")
    max_new_tokens: int = option(1024, "maximum tokens per answer; longer answers are left out")
    number: int | None = option(None, "use the first N prompts only (default: all)")
    batch_size: int = option(16, "answers generated at once; rounding, and so the result, depends on it")
    quantization: str = option("none", PRECISION_HELP, choices=("none", "8bit", "4bit"))
    seed: int = option(42, "sampling seed")


@dataclass(frozen=True)
class PersonaCombineOptions(PersonaOptions):
    """Shuffle persona and ordinary chats into one file for other trainers. Each row's metadata names its dataset."""

    persona: tuple[Path, ...] = option(
        None, "files of triggered persona chats", affects_result=False, nargs="+", required=True
    )
    aligned: tuple[Path, ...] = option(None, "files of ordinary chats", affects_result=False, nargs="+", required=True)
    seed: int = option(42, "seed of the order")
