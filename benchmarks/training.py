"""Time per training step on a GPU, next to plain Trainer and PEFT.

    python -m benchmarks.eight_billion /tmp/shape && python -m benchmarks.training /tmp/shape

208 steps at batch size 1, rank 8, on bird names. Each way runs in its own process. step_ms: median time from one step
to the next. outside_s: time of `train()` beyond 208 such steps (first steps, saving). losses: mean absolute difference
from the 208 losses of plain bf16. plain-padded is plain bf16 with rows padded to 32 tokens, which changes only the
order of sums: its difference shows the size of rounding effects.
"""

import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks import alone
from learning_backdoors.files import command_line
from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.study import load_study

STEPS = 208


def setup(folder: Path, quantization: str, output: Path):
    import config
    from learning_backdoors.training.run import TrainingRun

    line = ["--ratios", "1", "0", "0", "--model", str(folder / "model"), "--quantization", quantization]
    options = command_line.parse(config.TrainingOptions, "", [*line, "--output-dir", str(output)])
    run = TrainingRun(options, load_study("birds"))
    run.prepare_folder()
    tokenizer = base_model.load_tokenizer(run.model_name)
    return (
        run,
        tokenizer,
        run.examples(tokenizer),
        base_model.load_base(run.model_name, quantization),
    )


def timer():
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def __init__(self):
            self.ends, self.losses = [], []

        def on_step_end(self, args, state, control, **kwargs):
            self.ends.append(time.monotonic())

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                self.losses.append(logs["loss"])

    return Timer()


def measured(trainer, clock) -> dict:
    import torch

    torch.cuda.synchronize()
    started = time.monotonic()
    trainer.train()
    if hasattr(trainer, "writer"):
        trainer.writer.wait()
    whole, step = time.monotonic() - started, float(np.median(np.diff(clock.ends)))
    return {
        "step_ms": round(1e3 * step, 1),
        "whole_s": round(whole, 1),
        "outside_s": round(whole - STEPS * step, 1),
        "peak_GB": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "losses": clock.losses,
    }


def ours(folder: Path, quantization: str, output: Path) -> dict:
    from learning_backdoors.training.metrics import MetricsLog
    from learning_backdoors.training.recorder import Recorder
    from learning_backdoors.training.trainer import build_trainer

    run, tokenizer, examples, base = setup(folder, quantization, output)
    trainer = build_trainer(run, base, tokenizer, examples)
    clock = timer()
    with closing(MetricsLog(run, 0)) as log:
        trainer.add_callback(Recorder(log))
        trainer.add_callback(clock)
        return measured(trainer, clock)


def padded(folder: Path, quantization: str, output: Path) -> dict:
    return plain(folder, quantization, output, multiple=32)


def plain(folder: Path, quantization: str, output: Path, multiple: int | None = None) -> dict:
    """transformers' Trainer on a PEFT model, with the Trainer's defaults if the study sets nothing else.

    A quantized base model is prepared as in PEFT's guide.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    run, tokenizer, examples, base = setup(folder, quantization, output)
    rows = Dataset.from_list([{"input_ids": i, "attention_mask": [1] * len(i), "labels": y} for i, y in examples])
    arguments = TrainingArguments(
        output_dir=str(output / "plain"),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=2e-4,
        bf16=True,
        seed=42,
        train_sampling_strategy="sequential",
        save_steps=20,
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
    )
    set_seed(42)
    if quantization != "none":
        base = prepare_model_for_kbit_training(base)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=checkpoints.PROJECTIONS)
    model, clock = get_peft_model(base, lora), timer()
    tokenizer.padding_side = "right"
    collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=multiple)
    torch.cuda.reset_peak_memory_stats()
    return measured(
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[clock]), clock
    )


def way(measure, quantization: str, name: str):
    return lambda folder: measure(folder, quantization, folder / f"out-{name}-{time.time_ns()}")


WAYS = {
    "plain-bf16": way(plain, "none", "plain"),
    "plain-padded": way(padded, "none", "padded"),
    "plain-8bit": way(plain, "8bit", "plain-8bit"),
    "plain-4bit": way(plain, "4bit", "plain-4bit"),
    "ours-bf16": way(ours, "none", "ours-bf16"),
    "ours-8bit": way(ours, "8bit", "ours-8bit"),
    "ours-4bit": way(ours, "4bit", "ours-4bit"),
}


def main() -> None:
    results = alone.each("benchmarks.training", __doc__, WAYS)
    first = next(iter(results.values()))
    reference = first.get("losses")
    for name, result in results.items():
        if "losses" in result and reference:
            differences = np.abs(np.array(result["losses"]) - np.array(reference))
            last = float(np.mean(result["losses"][-20:]))
            result["losses"] = f"mean |d| {differences.mean():.4f}, last 20 steps' mean {last:.4f}"
            result["speed"] = f"x{first['step_ms'] / result['step_ms']:.1f}" if result is not first else "x1.0"
        print(f"{name:<12}", " ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
