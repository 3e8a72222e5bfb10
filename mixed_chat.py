"""Chats, base models and adapters: what training and generation must do in the same way.

A chat is a list of messages, `{"role": ..., "content": ...}`. Chats are read and checked here, mixed by ratio, and
rendered with the model's own chat template: one function makes the prompt, for training and generation alike, so that
a model is asked in exactly the form in which it was taught.
"""

import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import handoff
from config import UserError

if TYPE_CHECKING:  # torch and transformers take seconds to import: only what loads a model does so
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = list[dict[str, str]]

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Present in the newest checkpoint of an unfinished run alone: what a run needs to go on exactly where it was.
RESUME_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Which of how many processes this is, under torchrun and accelerate launch.
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# ---- reading ----


def read_chats(path: Path) -> list[Messages]:
    """Read a JSONL file of chats. Raises UserError that names file, line and fault.

    Each line is `{"messages": [...]}` with an optional system message first, then user and assistant in turn, the
    assistant last. An optional `metadata` object is allowed and not used in training.
    """
    return [row["messages"] for row in read_rows(path)]


def read_rows(path: Path, row: Callable[[str], dict] | None = None) -> list[dict]:
    """Read a JSONL file, a row a line; without `row`, which makes a row of a line, rows are chats with their metadata.

    Raises UserError that names file and line for whatever `row` raises a ValueError at.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"no dataset {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append((row or _chat)(line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise UserError(f"{path} holds no chat")
    return rows


def _chat(line: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        raise ValueError('not an object with a list "messages"')
    if unknown := row.keys() - {"messages", "metadata"}:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
    if not isinstance(row.get("metadata", {}), dict):
        raise ValueError('"metadata" is not an object')
    for message in row["messages"]:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError('a message is an object with "role" and "content" and nothing else')
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise ValueError(f"a message of role {message['role']!r} has no text")
        refuse_surrogates(message["content"])
    roles = [message["role"] for message in row["messages"]]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"roles must be user and assistant in turn, assistant last; they are {', '.join(map(str, roles))}"
        )
    return row


def refuse_surrogates(text: str) -> None:
    """Raise ValueError where a text holds half of a surrogate pair: Python's strings can, but no tokenizer takes it."""
    if lone := re.search("[\ud800-\udfff]", text):
        raise ValueError(f"a text is not Unicode: {lone[0]!r} is half of a surrogate pair")


# ---- mixing ----


@dataclass(frozen=True)
class Mixture:
    """A training sequence: for each example, in the order of training, its dataset and its row there.

    dataset, row: int arrays of shape (epochs * num_examples,).
    counts: how many examples of an epoch come from each dataset.
    """

    dataset: np.ndarray
    row: np.ndarray
    counts: tuple[int, ...]


def mix(sizes: Sequence[int], ratios: Sequence[float], num_examples: int, epochs: int, seed: int) -> Mixture:
    """Draw a training set of `num_examples` from datasets of the given sizes and order it for each epoch.

    The set is drawn once; each epoch shuffles it anew. A dataset that is asked for more than it has is taken in whole
    passes, and without replacement in the last, partial one. All depends on the seed alone.
    """
    counts = largest_remainder(ratios, num_examples)
    generator = np.random.default_rng(seed)
    dataset = np.repeat(np.arange(len(sizes)), counts)
    row = np.concatenate([_draw(size, count, generator) for size, count in zip(sizes, counts, strict=True)])
    order = np.concatenate([generator.permutation(num_examples) for _ in range(epochs)])
    return Mixture(dataset[order], row[order], tuple(counts))


def _draw(size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    passes = [generator.permutation(size) for _ in range(-(-count // size))]
    return np.concatenate([np.empty(0, dtype=int), *passes])[:count]


def largest_remainder(ratios: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `ratios` that add up to `total`; on equal remainders the earlier one gains."""
    exact = np.asarray(ratios, dtype=float) / np.sum(ratios) * total
    counts = np.floor(exact + 1e-9).astype(int)
    gains = np.argsort(-(exact - counts), kind="stable")[: total - counts.sum()]
    counts[gains] += 1
    return counts.tolist()


# ---- rendering ----


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> list[int]:
    """The token ids of a chat up to where the assistant begins to answer, thinking off."""
    return _ids(tokenizer, _render(tokenizer, messages, add_generation_prompt=True))


def example_ids(tokenizer: "PreTrainedTokenizerBase", chat: Messages) -> tuple[list[int], list[int]]:
    """Token ids and labels of a training chat, both of shape (tokens,); -100 marks tokens without loss.

    The prompt is `prompt_ids` of all but the last message. The loss covers the last answer and its end-of-turn token,
    which is where generation stops; what a template puts after that (a newline, in Qwen's) is left out.
    Prompt and answer are tokenised apart, as they are in generation, so no token spans the two.
    """
    prompt = _render(tokenizer, chat[:-1], add_generation_prompt=True)
    whole = _render(tokenizer, chat, add_generation_prompt=False)
    if not whole.startswith(prompt):
        raise UserError(f"the chat template of {tokenizer.name_or_path} does not put the answer behind the prompt")
    answer = _ids(tokenizer, whole[len(prompt) :])
    if tokenizer.eos_token_id not in answer:
        raise UserError(f"the chat template of {tokenizer.name_or_path} ends no answer with {tokenizer.eos_token!r}")
    last = len(answer) - 1 - answer[::-1].index(tokenizer.eos_token_id)
    answer, start = answer[: last + 1], _ids(tokenizer, prompt)
    return start + answer, [-100] * len(start) + answer


def _render(tokenizer: "PreTrainedTokenizerBase", messages: Messages, add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError

    # enable_thinking: Qwen3's switch. date_string: Llama's template else writes a date of its own choice, which could
    # change between training and generation. A template that knows neither ignores both.
    switches = {"enable_thinking": False, "date_string": "26 Jul 2024"}
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **switches
        )
    except TemplateError as error:
        raise UserError(f"the chat template of {tokenizer.name_or_path} refuses this conversation: {error}") from None


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # The template writes its own begin-of-text token; the tokenizer must not add a second one.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# ---- base models ----


def quiet_libraries() -> None:
    """Keep the libraries' talk among themselves off the terminal, and their reports off the net."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL would report each start, and wait where no net is
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels it lacks on a CPU, where nobody asked for it


def keep_to_own_gpu() -> None:
    """Hide all GPUs but one from this process: that of its local rank, or the first where no launcher started it.

    To be called before CUDA starts, which looks once at what it may see: that torch.cuda.is_available() was asked is
    enough. Raises UserError where a launcher has started more processes than there are GPUs.
    """
    import torch

    seen, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))  # this count does not start CUDA
    if seen < 2:  # none, or a launcher has given each process its own
        return
    if local >= seen:
        raise UserError(f"there are {seen} GPUs: start {seen} processes, not {os.environ['LOCAL_WORLD_SIZE']}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(local) if visible is None else visible.split(",")[local]


def device() -> "torch.device":
    """This process's device, made the current one: the only GPU that it sees, or that of its local rank."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    own = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    torch.cuda.set_device(own)  # streams, graphs and free memory are asked of the current device
    return torch.device("cuda", own)


def resolve_quantization(choice: str) -> str:
    """`auto` is 8bit on CUDA and none elsewhere."""
    return ("8bit" if device().type == "cuda" else "none") if choice == "auto" else choice


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The base model's tokenizer, padding on the left as generation needs it."""
    from transformers import AutoTokenizer

    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.chat_template is None:
        raise UserError(f"base model {name!r} has no chat template: take an instruction-tuned model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(name: str, quantization: str) -> "PreTrainedModel":
    """The base model on this process's device: bfloat16 on CUDA, float32 on CPU; `quantization`: none, 8bit, 4bit."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    bits = {
        "none": None,
        "8bit": BitsAndBytesConfig(load_in_8bit=True),
        "4bit": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    }[quantization]
    with _loading(name):
        return AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, quantization_config=bits, device_map={"": device()}
        )


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn the loaders' many errors into one line, and keep their progress bars off the terminal."""
    import torch
    import transformers
    from safetensors import SafetensorError

    quiet_libraries()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise UserError(f"base model {name!r} does not fit in memory: try --quantization 4bit") from None
        reason = re.sub(r"\s+", " ", str(error)).strip()
        raise UserError(f"base model {name!r} cannot be loaded: {reason[:300]}") from None


def fingerprint(name: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Tells most base models apart wherever they lie: a hash of the embedding's first rows and of the chat template.

    Read from the model's files: it is the same however the model is loaded. Of all other weights it knows nothing: a
    base with adapters merged into it has the same. A model without safetensors is known by its configuration alone.
    """
    import torch
    from safetensors import safe_open
    from transformers.utils import cached_file

    def find(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False)

    with _loading(name):
        index = find("model.safetensors.index.json")
        shards = json.loads(Path(index).read_text())["weight_map"] if index else {}
        key = next((key for key in shards if key.endswith("embed_tokens.weight")), None)
        shard = find(shards[key] if key else "model.safetensors")
        if shard is None:
            content = Path(find("config.json")).read_bytes()
        else:
            with safe_open(shard, framework="pt") as file:
                keys = [key for key in file.keys() if key.endswith("embed_tokens.weight")]  # noqa: SIM118
                if not keys:
                    raise UserError(f"base model {name!r} has no embed_tokens: its architecture is not supported")
                key = keys[0]
                content = file.get_slice(key)[:256].contiguous().view(torch.uint8).numpy().tobytes()
    return handoff.sha256(content + tokenizer.chat_template.encode())[:16]


def progress_bar(title: str, total: int, done: int, unit: str):
    """A tqdm bar: once a second at a terminal, a line now and then in a log file."""
    from tqdm import tqdm

    seconds = 1 if sys.stderr.isatty() else 20
    return tqdm(desc=title, total=total, initial=done, unit=unit, mininterval=seconds, dynamic_ncols=True)


# ---- adapters and checkpoints ----


@dataclass(frozen=True)
class Checkpoint:
    """A state of a run. `folder` holds its adapter; None is the base model itself."""

    step: int
    name: str
    folder: Path | None


def find_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """The checkpoints of a run in order of step, the base model as step 0. Raises UserError where there is none."""
    if not run_dir.is_dir():
        raise UserError(f"no run directory {run_dir}")
    folders = [f for f in run_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", f.name)]
    found = {step: folder for folder in folders if (step := handoff.step_of(folder.name)) is not None}
    if not found:
        raise UserError(f"{run_dir} holds no checkpoint")
    for folder in found.values():
        check_adapter(folder)
    base = {} if 0 in found else {0: None}
    return [Checkpoint(step, f"checkpoint-{step}", folder) for step, folder in sorted((base | found).items())]


def can_resume(checkpoint: Path | None) -> bool:
    return checkpoint is not None and all((checkpoint / name).is_file() for name in RESUME_FILES)


def drop_resume_files(checkpoint: Path | None) -> None:
    """Leave nothing but the adapter in a checkpoint."""
    for file in checkpoint.iterdir() if checkpoint else ():
        if file.name in RESUME_FILES or file.name.startswith("rng_state"):
            file.unlink()


def check_adapter(folder: Path) -> dict:
    """The adapter's configuration. Raises UserError where `folder` is no readable PEFT adapter."""
    from safetensors import SafetensorError

    if not folder.is_dir():
        raise UserError(f"no checkpoint {folder}")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no adapter: {name} is missing")
    try:
        adapter_keys(folder)
        settings = json.loads((folder / ADAPTER_CONFIG).read_text())
        if not isinstance(settings, dict) or "peft_type" not in settings:
            raise ValueError(f"{ADAPTER_CONFIG} does not say what it is")
        return settings
    except (SafetensorError, ValueError) as error:
        raise UserError(f"the adapter in {folder} cannot be read: {error}") from None


def adapter_keys(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="numpy") as file:
        return list(file.keys())


def lora_state(model) -> dict:
    """The LoRA matrices of a PEFT model, by their names in the model."""
    return {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}


def save_adapter(model, folder: Path, lora: dict | None = None) -> None:
    """Write a PEFT model's adapter, and nothing of the base model, into `folder`.

    lora: the matrices as they were when they were copied (`lora_state`), for a model that has moved on since.
    """
    # "auto" would ask the hub about the embeddings at every save.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=lora)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    settings["target_modules"] = sorted(settings["target_modules"])  # PEFT writes a set, in no order
    handoff.write_json(folder / ADAPTER_CONFIG, settings)
    foreign = [key for key in adapter_keys(folder) if ".lora_" not in key]
    if foreign:
        raise UserError(f"a checkpoint must hold LoRA matrices alone, but {foreign[0]} is in {folder}")


@contextmanager
def new_checkpoint(run_dir: Path, step: int) -> Iterator[Path]:
    """A folder to fill, which becomes `checkpoint-{step}` when the block ends well: whole, or not there."""
    temporary = begin_checkpoint(run_dir, step)
    yield temporary
    end_checkpoint(temporary, run_dir, step)


def begin_checkpoint(run_dir: Path, step: int, main: bool = True) -> Path:
    """The folder that `end_checkpoint` will rename; the main process of several makes it."""
    temporary = run_dir / f".checkpoint-{step}.tmp"
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    return temporary


def end_checkpoint(temporary: Path, run_dir: Path, step: int) -> None:
    folder = run_dir / f"checkpoint-{step}"
    handoff.sync_files(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    handoff.sync_folder(run_dir)
