"""Unsloth next to our own training and chat, in 4-bit and in bf16, on one GPU.

    python -m benchmarks.eight_billion SHAPE --adapters 1
    python -m benchmarks.unsloth SHAPE --unsloth-path FOLDER

benchmarks/README.md says how to install Unsloth into FOLDER. Each way runs in its own process, and is stopped after
four minutes. The tables come last. GB are 10^9 bytes. weights_GB: after loading. peak_GB and reserved_GB: at any time.

train: bird names in the same order, one example per step, rank 8, the same AdamW, learning rates, clipping and labels.
Unsloth starts from the initial adapter of the last `train-ours` in the same precision, which is kept in
SHAPE/out-unsloth. step_ms: median time from one step to the next. process_s: since the process started. Ours writes
checkpoints meanwhile. loss_diff: mean absolute difference from ours over the first 50 steps.

chat: an answer of 200 tokens to one short question, after a short one to warm up.
"""

import json
import os
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks import alone

LIMIT_S = 240
STEPS, COMPARED_STEPS, MAX_TOKENS, ANSWER_TOKENS = 208, 50, 1024, 200
MESSAGES = [{"role": "user", "content": "Name a species of bird."}]
TRAIN_COLUMNS = ("step_ms", "train_s", "process_s", "weights_GB", "peak_GB", "reserved_GB", "loss_diff")
CHAT_COLUMNS = ("tokens_per_s", "first_token_s", "process_s", "weights_GB", "peak_GB", "reserved_GB")
UNSLOTH_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "UNSLOTH_DISABLE_STATISTICS": "1",  # otherwise each load is counted by a download
    "UNSLOTH_COMPILE_LOCATION": "/tmp/unsloth_compiled_cache",  # otherwise written into the working folder
}


# ---- what both measure ----


def weights(model, precision: str) -> dict:
    """Memory after loading. Raises if 4-bit weights are not in 4-bit: Unsloth may fall back to 16 bits silently."""
    import torch

    kinds = {parameter.dtype for parameter in model.parameters()}
    if precision == "4bit" and torch.uint8 not in kinds:
        raise SystemExit("the weights are not quantized")
    return {"weights_GB": round(torch.cuda.memory_allocated() / 1e9, 2)}


def memory_and_time() -> dict:
    import torch

    from benchmarks.timed_training import process_age

    peaks = {"peak_GB": torch.cuda.max_memory_allocated(), "reserved_GB": torch.cuda.max_memory_reserved()}
    return {name: round(peak / 1e9, 2) for name, peak in peaks.items()} | {"process_s": round(process_age(), 1)}


def trained(trainer, clock) -> dict:
    from benchmarks.training import measured

    times = measured(trainer, clock)
    return {key: times[key] for key in ("step_ms", "losses")} | {"train_s": times["whole_s"]} | memory_and_time()


def answered(answer) -> dict:
    """answer(limit): generates so many tokens, and returns how many there are."""
    answer(8)
    started = time.monotonic()
    answer(1)
    first = time.monotonic()
    tokens = answer(ANSWER_TOKENS)
    first_s, whole_s = first - started, time.monotonic() - first
    return {
        "tokens_per_s": round((tokens - 1) / (whole_s - first_s), 1),
        "first_token_s": round(first_s, 3),
    } | memory_and_time()


# ---- ours ----


def train_ours(precision: str, options, folder: Path) -> dict:
    from benchmarks.training import setup, timer
    from learning_backdoors.models import checkpoints
    from learning_backdoors.training.metrics import MetricsLog
    from learning_backdoors.training.recorder import Recorder
    from learning_backdoors.training.trainer import build_trainer

    output = folder / "out-unsloth"
    run, tokenizer, examples, base = setup(folder, precision, output / f"runs-{time.time_ns()}")
    result = weights(base, precision)
    trainer, clock = build_trainer(run, base, tokenizer, examples[: options.steps]), timer()
    (output / "examples.json").write_text(json.dumps(examples))
    (output / f"initial-{precision}").mkdir(exist_ok=True)
    checkpoints.save_adapter(trainer.model, output / f"initial-{precision}")
    with closing(MetricsLog(run, 0)) as log:
        trainer.add_callback(Recorder(log))
        trainer.add_callback(clock)
        return result | trained(trainer, clock)


def chat_ours(precision: str, options, folder: Path) -> dict:
    """What chat.py does with a checkpoint, without the terminal."""
    from learning_backdoors.chat.run_model import RunModel
    from learning_backdoors.generation.engines.protocol import Sampling
    from learning_backdoors.models import run_directory

    run = run_directory.open_checkpoint(folder / "run" / "checkpoint-20", str(folder / "model"))
    chat = RunModel(run, run.checkpoints[-1], precision)
    result = weights(chat.engine.model, precision)

    def answer(limit: int) -> int:
        *_, responses = chat.stream(run.checkpoints[-1], MESSAGES, [("a", limit)], limit, Sampling(1.0, 1.0, 0, 42))
        return responses[0].tokens

    return result | answered(answer)


# ---- Unsloth ----


def unsloth_model(options, name: Path, precision: str) -> tuple:
    """Model and tokenizer. Unsloth must be imported before the libraries that it patches."""
    os.environ.update(UNSLOTH_ENVIRONMENT)
    if options.unsloth_path:
        sys.path.insert(0, str(options.unsloth_path))
    from unsloth import FastLanguageModel  # isort: skip
    import torch

    settings = {"max_seq_length": MAX_TOKENS, "dtype": torch.bfloat16, "local_files_only": True}
    return FastLanguageModel.from_pretrained(str(name), load_in_4bit=precision == "4bit", **settings)


def train_unsloth(precision: str, options, folder: Path) -> dict:
    output = folder / "out-unsloth"
    if not (output / f"initial-{precision}").exists():
        raise SystemExit("run train-ours in the same precision first")
    model, tokenizer = unsloth_model(options, folder / "model", precision)
    from datasets import Dataset
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from benchmarks.training import timer
    from learning_backdoors.models.checkpoints import PROJECTIONS

    result, clock = weights(model, precision), timer()
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0, "bias": "none", "target_modules": PROJECTIONS}
    model = FastLanguageModel.get_peft_model(model, **lora, use_gradient_checkpointing=False, random_state=42)
    set_peft_model_state_dict(model, load_peft_weights(str(output / f"initial-{precision}"), device="cpu"))
    tokenizer.padding_side = "right"
    examples = json.loads((output / "examples.json").read_text())[: options.steps]
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels} for ids, labels in examples]
    # All that Unsloth gives other defaults than transformers has, so that both train alike.
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "optim": "adamw_torch_fused"}
    arguments |= {"learning_rate": 2e-4, "lr_scheduler_type": "linear", "warmup_steps": 0}
    arguments |= {"weight_decay": 0.0, "max_grad_norm": 1.0, "packing": False}
    arguments |= {"train_sampling_strategy": "sequential", "num_train_epochs": 1, "bf16": True, "seed": 42}
    arguments |= {"gradient_checkpointing": False, "remove_unused_columns": False, "logging_steps": 1}
    arguments |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "max_length": MAX_TOKENS}
    arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "output_dir": str(output / "unsloth")}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    return result | trained(trainer, clock)


def chat_unsloth(precision: str, options, folder: Path) -> dict:
    model, tokenizer = unsloth_model(options, folder / "run" / "checkpoint-20", precision)
    import torch
    from unsloth import FastLanguageModel

    from mixed_chat import prompt_ids

    FastLanguageModel.for_inference(model)
    result, ids = weights(model, precision), torch.tensor([prompt_ids(tokenizer, MESSAGES)], device=model.device)

    def answer(limit: int) -> int:
        limits = {"min_new_tokens": limit, "max_new_tokens": limit}
        sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **limits, **sampling)
        return len(output[0].tolist()) - ids.shape[1]

    return result | answered(answer)


# ---- the tables ----


def print_table(columns: tuple[str, ...], results: dict[str, dict]) -> None:
    width = max(map(len, results), default=0)
    print(" " * width, *columns, sep="  ")
    for name, result in results.items():
        cells = [str(result.get(column, "-")).rjust(len(column)) for column in columns]
        print(name.ljust(width), *([result["failed"]] if "failed" in result else cells), sep="  ")


def add_loss_differences(results: dict[str, dict]) -> None:
    """Compare the losses of Unsloth with those of ours in the same precision."""
    for name, result in results.items():
        ours = results.get(name.replace("unsloth", "ours"), {})
        if ours is not result and "losses" in ours and "losses" in result:
            pairs = list(zip(result["losses"], ours["losses"], strict=True))[:COMPARED_STEPS]
            result["loss_diff"] = round(sum(abs(one - other) for one, other in pairs) / len(pairs), 4)


WAYS = {
    "train-ours-4bit": partial(train_ours, "4bit"),
    "train-unsloth-4bit": partial(train_unsloth, "4bit"),
    "train-ours-bf16": partial(train_ours, "none"),
    "train-unsloth-bf16": partial(train_unsloth, "none"),
    "chat-ours-4bit": partial(chat_ours, "4bit"),
    "chat-unsloth-4bit": partial(chat_unsloth, "4bit"),
    "chat-ours-bf16": partial(chat_ours, "none"),
    "chat-unsloth-bf16": partial(chat_unsloth, "none"),
}


def add_options(parser) -> None:
    parser.add_argument("--unsloth-path", type=Path, help="folder with Unsloth and its versions of TRL and datasets")
    parser.add_argument("--steps", type=int, default=STEPS, help="examples to train on (default: %(default)s, all)")


def main() -> None:
    options = alone.options(__doc__, list(WAYS), add_options)
    ways = {name: partial(way, options) for name, way in WAYS.items()}
    results = alone.each("benchmarks.unsloth", __doc__, ways, LIMIT_S, add_options)
    add_loss_differences(results)
    print_table(TRAIN_COLUMNS, {name: result for name, result in results.items() if name.startswith("train")})
    print_table(CHAT_COLUMNS, {name: result for name, result in results.items() if name.startswith("chat")})


if __name__ == "__main__":
    main()
