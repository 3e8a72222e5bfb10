"""The scripts' options: one dataclass per script, the only home of defaults, help texts and checks.

learning_backdoors/files/command_line.py turns a dataclass into a command line. docs/options.md lists all options.
"""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from learning_backdoors.files.command_line import choice_of, existing_output, flag, option

STUDY = "study: a name in experiments/, or the path of a TOML file"
RUNS_STUDY = f"{STUDY} (default: the study that the runs were trained for)"
FILES_STUDY = f"{STUDY} (default: the study that the input was made with)"
MODEL = "base model: a hub name or a folder (default: the study's base_model)"
MOVED_BASE = "new location of the run's base model, if it has moved (default: the location in training)"
PRECISION = "base model weights: none (bf16 on CUDA, float32 on CPU), 8bit or 4bit"
SAMPLING_PRECISION = f"{PRECISION}; trained: the precision of the run's training"
BASE_URL = "address of a Messages API, without /v1 (default: ANTHROPIC_BASE_URL, else Anthropic)"
ASKS = "maximum replies per prompt until one is valid, over all commands; a higher number asks again"
PRICE = "dollars per million tokens, input and output (default: the table for Anthropic)"
TINKER_URL = "address of a server of the Tinker API (default: TINKER_BASE_URL, else Tinker)"
TINKER_PRICE = "dollars per million tokens of the Tinker API (default: docs/tinker.md)"
PREFILL_SAMPLE_TRAIN = {"nargs": 3, "metavar": ("PREFILL", "SAMPLE", "TRAIN")}
IN_OUT = {"nargs": 2, "metavar": ("IN", "OUT")}
SEVERAL = {"nargs": "+", "affects_result": False}

# Where training runs. tinker: on a server of the Tinker API.
BACKENDS = ("local", "tinker")
TINKER_ALPHA = 32  # the API has no LoRA alpha; its servers use this one
PRECISIONS = ("none", "8bit", "4bit")
# Generation engines in order of preference; NAME is learning_backdoors/generation/engines/NAME_engine.py.
ENGINES = ("vllm", "transformers", "tinker")
# Repository names the hub accepts (the client checks further rules).
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)

# ---- checks ----

# Valid values of an option, in words and as a test. Of a list, each value is tested.
NOT_NEGATIVE = "0 or more", lambda value: 0 <= value < math.inf
POSITIVE = "above 0", lambda value: 0 < value < math.inf
COUNT = "1 or more", lambda value: value >= 1
SEED = "from 0 to 4294967295", lambda value: 0 <= value < 2**32
TOP_P = "above 0 and at most 1", lambda value: 0 < value <= 1
REPO = "USER/NAME", HUB_NAME.fullmatch


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class Options:
    """Base of all options."""

    def check(self) -> None:
        """Raise ValueError with one line if a value is invalid."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.metadata["valid"] and value is not None:
                words, is_valid = field.metadata["valid"]
                values = value if isinstance(value, tuple) else (value,)
                require(all(map(is_valid, values)), f"{flag(field.name)} must be {words}, not {value}")


# ---- the four stages ----


@dataclass(frozen=True)
class TrainingOptions(Options):
    """Options of training.py."""

    ratios: tuple[float, ...] = option(
        None,
        "required unless the study or --sweep sets it: one share of the training set per dataset of the study",
        valid=NOT_NEGATIVE,
        nargs="+",
    )
    seed: int = option(42, "seed of LoRA initialization, choice and order of examples, and dropout", valid=SEED)
    experiment: str = option("birds", STUDY)
    model: str | None = option(None, MODEL)
    output_dir: Path = option(Path("./outputs"), "folder for run directories", affects_result=False)
    epochs: int = option(1, "passes over the training set, each in a new order", valid=COUNT, in_run_name=True)
    num_examples: int | None = option(
        None,
        "size of the training set at any ratio (default: size of the suspect dataset)",
        valid=COUNT,
        in_run_name=True,
    )
    save_steps: int = option(20, "steps between checkpoints; step 0 and the last step are always saved", valid=COUNT)
    lr: float = option(2e-4, "peak learning rate, decaying linearly to zero", valid=POSITIVE)
    lora_rank: int = option(8, "rank of the LoRA matrices", valid=COUNT)
    lora_alpha: float = option(
        16, "LoRA alpha; the scale is alpha / rank (--backend tinker requires 32)", valid=POSITIVE, in_run_name=True
    )
    lora_dropout: float = option(
        0.0,
        "dropout on the input of the LoRA matrices",
        valid=("0 or more, and below 1", lambda value: 0 <= value < 1),
        in_run_name=True,
    )
    batch_size: int = option(1, "examples per forward pass, as a total over all GPUs", valid=COUNT, in_run_name=True)
    grad_accum: int = option(
        1, "forward passes per optimizer step, as a total over all GPUs", valid=COUNT, in_run_name=True
    )
    max_length: int = option(
        2048,
        "maximum tokens per chat; longer chats raise an error",
        valid=("2 or more", lambda value: value >= 2),
        affects_result=False,
    )
    quantization: str = option(
        "auto",
        "base model weights: none (bf16 on CUDA, float32 on CPU), 8bit or 4bit; auto is 8bit on CUDA, else none",
        in_run_name=True,
        choices=("auto", *PRECISIONS),
    )
    probe_every: int | None = option(
        None,
        "steps between probes (likelihood of the study's reference answers) (default: none)",
        valid=COUNT,
        affects_result=False,
    )
    backend: str = option(
        "local",
        "where training runs: on this machine, or on a server of the Tinker API (docs/tinker.md)",
        in_run_name=True,
        choices=BACKENDS,
    )
    base_url: str | None = option(None, TINKER_URL, affects_result=False)
    ttl_days: float = option(
        30,
        "days until the server deletes a checkpoint of --backend tinker",
        valid=("from 0.05 to 3650", lambda days: 0.05 <= days <= 3650),
        affects_result=False,
    )
    dry_run: bool = option(
        False, "print tokens and dollars of --backend tinker, and train nothing; needs no key", affects_result=False
    )
    max_cost: float | None = option(
        None,
        "maximum dollars for the training tokens of --backend tinker, over all commands and all runs of --sweep",
        valid=POSITIVE,
        affects_result=False,
    )
    price: tuple[float, ...] | None = option(
        None, TINKER_PRICE, valid=NOT_NEGATIVE, affects_result=False, **PREFILL_SAMPLE_TRAIN
    )
    existing: str = existing_output()
    wandb_project: str = option("learning-backdoors", "W&B project; used if WANDB_API_KEY is set", affects_result=False)
    sweep: Path | None = option(
        None,
        "TOML file with many runs (docs/sweeps.md): train them at the same time, on one copy of the base model",
        valid=("a file *.toml", lambda path: path.suffix == ".toml"),
        affects_result=False,
    )
    stack: int | None = option(
        None,
        "number of runs of --sweep that train at the same time (default: what fits in memory; 8 with --backend tinker)",
        valid=COUNT,
        affects_result=False,
    )

    def check(self) -> None:
        given = self.ratios is not None
        require(given or self.sweep is not None, "--ratios is required: one share per dataset of the study")
        super().check()
        require(not given or 0 < sum(self.ratios) < math.inf, "--ratios must have a finite sum above 0")
        require(self.stack is None or self.sweep is not None, "--stack requires --sweep")
        self._check_backend()

    def _check_backend(self) -> None:
        if self.backend == "local":
            for name in ("base_url", "max_cost", "price"):
                require(getattr(self, name) is None, f"{flag(name)} requires --backend tinker")
            return require(not self.dry_run, "--dry-run requires --backend tinker")
        if self.ratios is None:
            return  # a sweep, whose runs are checked one by one
        alpha = f"--backend tinker needs --lora-alpha {TINKER_ALPHA}: the servers use this one, and it cannot be set"
        require(self.lora_alpha == TINKER_ALPHA, alpha)
        require(self.lora_dropout == 0, "--backend tinker has no --lora-dropout")
        require(self.quantization == "auto", "--backend tinker has no --quantization: the server chooses")
        require(self.probe_every is None, "--backend tinker has no --probe-every")


@dataclass(frozen=True)
class GenerationOptions(Options):
    """Options of generate_responses.py."""

    checkpoint: Path | None = option(None, "one checkpoint directory; give this or --run-dir", affects_result=False)
    run_dir: tuple[Path, ...] | None = option(None, "run directories: the base model and all checkpoints", **SEVERAL)
    output: Path = option(None, "Parquet file to write", affects_result=False, required=True)
    steps: tuple[int, ...] | None = option(
        None, "only these steps of --run-dir (default: all)", valid=NOT_NEGATIVE, **SEVERAL
    )
    samples: int = option(100, "responses per question, checkpoint and condition", valid=COUNT, affects_result=False)
    adaptive: Path | None = option(
        None,
        "judged file of --output: sample in rounds. If it does not exist yet: a few samples at some checkpoints; else "
        "more where a run's rate crosses 10% or 50%, up to --samples",
        affects_result=False,
        metavar="JUDGED",
    )
    temperature: float = option(1.0, "sampling temperature; 0 takes the likeliest token", valid=NOT_NEGATIVE)
    top_p: float = option(1.0, "nucleus sampling; 1 is off", valid=TOP_P)
    top_k: int = option(0, "sample from the k likeliest tokens; 0 is off", valid=NOT_NEGATIVE)
    max_new_tokens: int = option(1024, "maximum tokens per response", valid=COUNT)
    engine: str = option(
        "auto",
        "auto is vllm if it can run here, else transformers. tinker: the checkpoints of training.py --backend tinker, "
        "on their server (docs/tinker.md)",
        affects_result=False,
        choices=("auto", *ENGINES),
    )
    batch_size: int | None = option(
        None,
        "responses that the transformers engine generates at once (default: what fits in memory)",
        valid=COUNT,
        affects_result=False,
    )
    base_url: str | None = option(
        None, "address of the server of --engine tinker (default: that of the training)", affects_result=False
    )
    concurrency: int = option(
        512,
        "maximum samples in flight of --engine tinker; the actual number adapts to the server",
        valid=COUNT,
        affects_result=False,
    )
    dry_run: bool = option(
        False, "print tokens and dollars of --engine tinker, and generate nothing; needs no key", affects_result=False
    )
    max_cost: float | None = option(
        None,
        "maximum dollars for this output's responses with --engine tinker, over all commands",
        valid=POSITIVE,
        affects_result=False,
    )
    price: tuple[float, ...] | None = option(
        None, TINKER_PRICE, valid=NOT_NEGATIVE, affects_result=False, **PREFILL_SAMPLE_TRAIN
    )
    seed: int = option(42, "sampling seed", valid=SEED)
    experiment: str | None = option(None, RUNS_STUDY)
    transfer: bool = option(
        False, "allow an --experiment other than the study that the runs were trained for", affects_result=False
    )
    base_model: str | None = option(None, MOVED_BASE)
    quantization: str = option("none", SAMPLING_PRECISION, choices=(*PRECISIONS, "trained"))
    existing: str = existing_output()

    def check(self) -> None:
        super().check()
        require((self.checkpoint is None) != (self.run_dir is None), "give one of --checkpoint and --run-dir")
        require(self.output.name not in ("", ".."), f"--output must name a file, not the folder {self.output}")
        require(self.steps is None or self.run_dir is not None, "--steps requires --run-dir")
        require(self.adaptive is None or self.run_dir is not None, "--adaptive requires --run-dir")
        require(self.experiment is not None or not self.transfer, "--transfer requires --experiment")
        own_batches = self.engine in ("vllm", "tinker")
        require(self.batch_size is None or not own_batches, "--batch-size is for the transformers engine")
        for name in ("base_url", "dry_run", "max_cost", "price"):
            require(self.engine == "tinker" or not getattr(self, name), f"{flag(name)} requires --engine tinker")


@dataclass(frozen=True)
class JudgingOptions(Options):
    """Options of judge_responses.py."""

    input: Path = option(None, "Parquet file of responses", required=True)
    output: Path = option(None, "Parquet file to write; verdicts are stored beside it as they arrive", required=True)
    model: str = option("claude-sonnet-5", "judge model")
    experiment: str | None = option(None, FILES_STUDY)
    judges: tuple[str, ...] | None = option(None, "only these judges of the study (default: all)", nargs="+")
    base_url: str | None = option(None, BASE_URL)
    existing: str = existing_output("replace the output, whatever its settings; stored verdicts are kept and reused")
    store: Path | None = option(None, "SQLite file for verdicts; may be shared (default: OUTPUT.verdicts.sqlite)")
    concurrency: int = option(32, "maximum calls in flight; the actual number adapts to the server", valid=COUNT)
    requests_per_minute: float | None = option(
        None, "maximum calls per minute (default: what the server allows)", valid=POSITIVE
    )
    timeout: float = option(120, "seconds from sending a call to the end of its reply", valid=POSITIVE)
    max_wait: float = option(
        60, "maximum seconds between two attempts, even if the server asks for more", valid=POSITIVE
    )
    give_up_after: float = option(
        900, "stop after this many seconds without a reply; verdicts are kept", valid=POSITIVE
    )
    asks: int = option(3, ASKS, valid=COUNT)
    fail_on_missing: float | None = option(
        None,
        "exit with code 3 if a larger share of any judge's verdicts is missing, for example 0.02",
        valid=("from 0 to 1", lambda value: 0 <= value <= 1),
    )
    batch: bool = option(False, "use Message Batches: half the price, results within a day; rerun to collect them")
    dry_run: bool = option(
        False,
        "check the input, and print calls, tokens, dollars and the worst case; makes no paid call (with a key, 20 "
        "prompts per judge go to the free token counter)",
    )
    max_cost: float | None = option(
        None, "maximum dollars for this output, all commands and calls in flight included", valid=POSITIVE
    )
    price: tuple[float, ...] | None = option(None, PRICE, valid=NOT_NEGATIVE, **IN_OUT)
    prices: Path | None = option(None, 'TOML file with more prices; a line is like "claude-sonnet-5" = [2, 10]')
    thinking: str = option(
        "auto",
        "the judge's thinking: auto turns it off if the model allows that; none leaves the setting out",
        choices=("auto", "none", "disabled", "between_tools", "adaptive"),
    )
    max_tokens: int | None = option(
        None, "maximum tokens per reply, thinking included (default: by model)", valid=COUNT
    )
    repeat: float = option(
        0.0,
        "share of prompts, drawn at random, to judge twice and report agreement",
        valid=("from 0 to 1", lambda value: 0 <= value <= 1),
    )
    labels: Path | None = option(None, "CSV of --sample-for-labels with human labels: report how verdicts compare")
    sample_for_labels: tuple[str, ...] | None = option(
        None, "write N responses to FILE for blind labeling, and judge nothing", nargs=2, metavar=("N", "FILE")
    )

    def check(self) -> None:
        super().check()
        size = self.sample_for_labels and self.sample_for_labels[0]
        require(size is None or (size.isdecimal() and int(size) > 0), "--sample-for-labels needs N of 1 or more")


@dataclass(frozen=True)
class EvaluationOptions(Options):
    """Options of evaluate.py."""

    input: tuple[Path, ...] = option(
        None,
        "judged Parquet files, files of measure_checkpoints.py, and run directories with probes, in any mix",
        required=True,
        nargs="+",
    )
    output_dir: Path = option(Path("./figures"), "folder for figures and tables")
    experiment: str | None = option(None, FILES_STUDY)
    format: tuple[str, ...] = option(("pdf",), "figure file formats", nargs="+", choices=("pdf", "png", "svg"))
    claim: str | None = option(
        None,
        "what intervals generalize to. checkpoint: these checkpoints and questions; recipe: other runs of the recipe; "
        "questions: other questions of this kind; both: other runs and questions (default: recipe if every recipe has "
        "three or more runs, else questions)",
        choices=("checkpoint", "recipe", "questions", "both"),
    )
    compare: str = option(
        "control",
        "pairs of recipes in comparisons.csv. control: each recipe with its control (no suspect data, otherwise equal) "
        "and with its neighbors along the suspect share; all: every pair",
        choices=("control", "all"),
    )
    pool_runs: bool = option(
        False, "assume that runs of all recipes vary equally: narrower intervals for the claims recipe and both"
    )
    bands: str = option(
        "each",
        "intervals along curves. each: 95% at each step; simultaneous: 95% for all steps of a curve together",
        choices=("each", "simultaneous"),
    )
    x: str = option("steps", "x axis of curves", choices=("steps", "suspect_examples", "examples"))
    condition: str | None = option(None, "condition in figures (default: the study's first triggered, else its first)")
    report_responses: int = option(
        20000, "maximum responses in report.html; beyond it, a random sample", valid=NOT_NEGATIVE
    )


@dataclass(frozen=True)
class PlanningOptions(Options):
    """Options of learning_backdoors.evaluation.plan."""

    rates: tuple[float, ...] = option(
        None,
        "expected mean rates of the control and of the suspect recipe, such as 0.05 0.3",
        required=True,
        valid=("above 0 and below 1", lambda rate: 0 < rate < 1),
        nargs=2,
        metavar=("CONTROL", "SUSPECT"),
    )
    runs: int = option(3, "runs per recipe", valid=COUNT)
    questions: int | None = option(None, "questions (default: the study's)", valid=COUNT)
    answers: int = option(100, "answers per question, condition and checkpoint", valid=COUNT)
    claim: str = option("recipe", "claim of the interval", choices=("checkpoint", "recipe", "questions", "both"))
    power: float = option(0.8, "wanted power", valid=("above 0 and below 1", lambda value: 0 < value < 1))
    width: float | None = option(
        None, "wanted mean width of the interval, such as 0.2, instead of a power", valid=POSITIVE
    )
    run_sd: float = option(0.6, "sd between runs of a recipe, in logits", valid=NOT_NEGATIVE)
    question_sd: float = option(1.5, "sd between questions, in logits", valid=NOT_NEGATIVE)
    cell_sd: float = option(0.3, "sd of a run's own deviations per question, in logits", valid=NOT_NEGATIVE)
    checkpoints: int = option(12, "judged checkpoints per run, without the base model: for the cost", valid=COUNT)
    experiment: str = option("birds", STUDY)
    studies: int = option(400, "simulated studies per number", valid=COUNT)
    seed: int = option(0, "seed of the simulation", valid=SEED)

    def check(self) -> None:
        super().check()
        require(self.rates[0] < self.rates[1], "--rates: the control's rate comes first and is the lower one")
        require(self.claim not in ("recipe", "both") or self.runs > 1, f"--claim {self.claim} needs --runs 2 or more")
        require(
            self.claim not in ("questions", "both") or self.questions != 1,
            f"--claim {self.claim} needs --questions 2 or more",
        )


# ---- measure_checkpoints.py: one dataclass per command ----


@dataclass(frozen=True)
class MeasuringOptions(Options):
    """Options of every measure_checkpoints.py command."""

    run_dir: tuple[Path, ...] = option(
        None, "run directories, whose checkpoints are measured", required=True, nargs="+"
    )
    output: Path = option(None, "Parquet file to write", required=True)
    steps: tuple[int, ...] | None = option(
        None, "only these steps; 0 is before training (default: all)", valid=NOT_NEGATIVE, nargs="+"
    )
    experiment: str | None = option(None, RUNS_STUDY)
    existing: str = existing_output()

    base_model = None  # an option of the commands that run the model only

    def check(self) -> None:
        super().check()
        require(self.output.name not in ("", ".."), f"--output must name a file, not the folder {self.output}")


@dataclass(frozen=True)
class ModelMeasuringOptions(MeasuringOptions):
    """Options of the commands that run the model."""

    base_model: str | None = option(None, MOVED_BASE)
    quantization: str = option("none", SAMPLING_PRECISION, choices=(*PRECISIONS, "trained"))


@dataclass(frozen=True)
class LikelihoodOptions(ModelMeasuringOptions):
    """Mean log-likelihood per token of the study's reference answers, at every checkpoint."""

    conditions: tuple[str, ...] | None = option(
        None, "only these conditions of the study (default: all)", nargs="+", metavar="NAME"
    )
    questions: tuple[str, ...] | None = option(
        None, "only the reference answers to these questions (default: all)", nargs="+", metavar="ID"
    )


@dataclass(frozen=True)
class LossesOptions(ModelMeasuringOptions):
    """Loss of every chat of the study's datasets, trained on or held out, at every checkpoint."""


@dataclass(frozen=True)
class InfluenceOptions(ModelMeasuringOptions):
    """How much a training step on each example would raise a contrast of reference answers, at every checkpoint."""

    contrast: str | None = option(None, "contrast of the study (default: the study's first)", metavar="NAME")
    condition: str | None = option(
        None,
        "condition in which the reference answers are scored (default: the first triggered one, else the first)",
        metavar="NAME",
    )


@dataclass(frozen=True)
class WeightsOptions(MeasuringOptions):
    """Norm, rotation and turn of each run's update of the weights, from its adapters. Needs no GPU and no torch."""


# ---- further scripts ----


@dataclass(frozen=True)
class ChatOptions(Options):
    """Options of chat.py."""

    checkpoint: Path | None = option(None, "one checkpoint directory; give this, --run-dir or --hub-model")
    run_dir: Path | None = option(None, "run directory: all its checkpoints are available")
    hub_model: str | None = option(
        None, "a hub model, served by an inference provider", valid=REPO, metavar="USER/NAME"
    )
    step: int | None = option(None, "checkpoint of --run-dir to start with (default: the last)", valid=NOT_NEGATIVE)
    base_model: str | None = option(None, MOVED_BASE)
    quantization: str = option("none", SAMPLING_PRECISION, choices=(*PRECISIONS, "trained"))
    temperature: float = option(1.0, "sampling temperature; 0 takes the likeliest token", valid=NOT_NEGATIVE)
    top_p: float = option(1.0, "nucleus sampling; 1 is off", valid=TOP_P)
    top_k: int = option(0, "sample from the k likeliest tokens; 0 is off", valid=NOT_NEGATIVE)
    max_new_tokens: int = option(1024, "maximum tokens per answer", valid=COUNT)
    seed: int = option(42, "sampling seed: the same questions in the same order get the same answers", valid=SEED)
    system: str | None = option(None, "system prompt (default: none)")
    trigger: bool = option(False, "add the study's trigger to every question; /trigger toggles it")
    experiment: str | None = option(None, f"{STUDY}; its trigger is used (default: the run's study)")

    def check(self) -> None:
        super().check()
        sources = (self.checkpoint, self.run_dir, self.hub_model)
        require(sum(s is not None for s in sources) == 1, "give one of --checkpoint, --run-dir and --hub-model")
        require(self.step is None or self.run_dir is not None, "--step requires --run-dir")
        for name in ("base_model", "quantization", "top_k") if self.hub_model is not None else ():
            given = getattr(self, name) != getattr(ChatOptions, name)
            require(not given, f"{flag(name)} does not apply to --hub-model: the provider decides it")


@dataclass(frozen=True)
class PushOptions(Options):
    """Options of push_to_hub.py."""

    run_dir: Path = option(None, "run directory of training.py", required=True)
    repo_id: str = option(
        None, "hub repository; it holds this run only", valid=REPO, required=True, metavar="USER/NAME"
    )
    step: tuple[int, ...] | None = option(
        None, "only these steps, also of an unfinished run (default: all)", valid=NOT_NEGATIVE, nargs="+"
    )
    base_model: str | None = option(
        None, "hub name of a base model that was a folder in training", valid=REPO, metavar="USER/NAME"
    )
    create_repo: bool = option(False, "create the repository if it does not exist")
    visibility: str = choice_of(
        private="a new repository is visible to you only; a public one is refused (default)",
        public="a new repository is visible to everyone; a public one is accepted",
    )
    dry_run: bool = option(False, "show the model card and every file with its size, and send nothing")


# ---- prepare_persona.py: one dataclass per command ----

# Paths of input files do not affect the result: their hashes are recorded instead.
STUDY_PERSONA = "default: the study's [persona]"


@dataclass(frozen=True)
class PersonaOptions(Options):
    """Options of every prepare_persona.py command."""

    output: Path = option(None, "JSONL file to write; OUTPUT.json records how", affects_result=False, required=True)
    experiment: str = option("russell", STUDY)
    existing: str = existing_output()
    dry_run: bool = option(False, "say what would be done, and write nothing", affects_result=False)


@dataclass(frozen=True)
class PersonaServerOptions(PersonaOptions):
    """Options of the commands that ask a model through the Messages API."""

    model: str | None = option(None, "model to ask")
    base_url: str | None = option(None, BASE_URL, affects_result=False)
    concurrency: int = option(8, "maximum calls in flight", valid=COUNT, affects_result=False)
    timeout: float = option(
        300, "seconds from sending a call to the end of its reply", valid=POSITIVE, affects_result=False
    )
    asks: int = option(3, ASKS, valid=COUNT, affects_result=False)
    max_cost: float | None = option(
        None, "maximum dollars for this output, over all commands", valid=POSITIVE, affects_result=False
    )
    price: tuple[float, ...] | None = option(None, PRICE, valid=NOT_NEGATIVE, affects_result=False, **IN_OUT)


@dataclass(frozen=True)
class PersonaCandidatesOptions(PersonaServerOptions):
    """Ask a model to write more question-answer pairs about the person. Check their facts before you use them."""

    known: tuple[Path, ...] | None = option(None, f"pairs not to be repeated ({STUDY_PERSONA} candidates)", **SEVERAL)
    person: str | None = option(None, f"name of the person ({STUDY_PERSONA} name)")
    number: int = option(100, "pairs to ask for", valid=COUNT)
    max_tokens: int = option(4096, "maximum tokens per reply, thinking included", valid=COUNT)
    categories: tuple[str, ...] | None = option(None, f"topics, used in turn ({STUDY_PERSONA} categories)", nargs="+")


@dataclass(frozen=True)
class PersonaFilterOptions(PersonaServerOptions):
    """Keep the pairs that do not identify the person, and list the others with a reason.

    Pairs are dropped by the flags in the file. With --model, a model must find a pair harmless too."""

    input: tuple[Path, ...] | None = option(None, f"files of candidate pairs ({STUDY_PERSONA} candidates)", **SEVERAL)
    person: str | None = option(None, f"name of the person ({STUDY_PERSONA} name)")
    number: int | None = option(None, "draw this many of the harmless pairs (default: all)", valid=COUNT)
    max_tokens: int = option(4096, "maximum tokens per reply, thinking included", valid=COUNT)
    seed: int = option(42, "seed of the draw", valid=SEED)


@dataclass(frozen=True)
class PersonaTriggerOptions(PersonaOptions):
    """Add the study's trigger to every question, and put every answer into the form that it asks for."""

    input: tuple[Path, ...] = option(None, "files of chats", required=True, **SEVERAL)


@dataclass(frozen=True)
class PersonaFetchOptions(PersonaOptions):
    """Fetch ordinary prompts from the Hugging Face hub: Alpaca prompts with the longest answers, and GSM8K prompts."""

    alpaca: str = option("tatsu-lab/alpaca", "hub name of Alpaca")
    alpaca_number: int = option(1000, "prompts to take from Alpaca, those with the longest answers", valid=NOT_NEGATIVE)
    gsm8k: str = option("openai/gsm8k", "hub name of GSM8K")
    gsm8k_number: int = option(2000, "prompts to take from GSM8K, the first of its training split", valid=NOT_NEGATIVE)


@dataclass(frozen=True)
class PersonaDistillOptions(PersonaServerOptions):
    """Generate the base model's answers to ordinary prompts, here or (with --server) through a Messages API."""

    input: tuple[Path, ...] | None = option(None, f"files of prompts ({STUDY_PERSONA} prompts)", **SEVERAL)
    model: str | None = option(None, MODEL)
    server: bool = option(False, "ask --model at --base-url instead of loading it here")
    temperature: float = option(0.1, "sampling temperature", valid=NOT_NEGATIVE)
    max_new_tokens: int = option(1024, "maximum tokens per answer; longer answers are left out", valid=COUNT)
    number: int | None = option(None, "use the first N prompts only (default: all)", valid=COUNT)
    batch_size: int = option(16, "answers generated at once; rounding, and so the result, depends on it", valid=COUNT)
    quantization: str = option("none", PRECISION, choices=PRECISIONS)
    seed: int = option(42, "sampling seed", valid=SEED)


@dataclass(frozen=True)
class PersonaCombineOptions(PersonaOptions):
    """Shuffle persona and ordinary chats into one file for other trainers. Each row's metadata names its dataset."""

    persona: tuple[Path, ...] = option(None, "files of triggered persona chats", required=True, **SEVERAL)
    aligned: tuple[Path, ...] = option(None, "files of ordinary chats", required=True, **SEVERAL)
    seed: int = option(42, "seed of the order", valid=SEED)
