# ruff: noqa: E402 (the libraries must be told to be quiet before they are imported)
"""Supervised fine-tuning: TRL's trainer, made to see its examples in a given order and to keep whole checkpoints.

What TRL and transformers decide otherwise, and we must not leave to them: the order of the examples (the mixture's, so
that what each step saw is known), checkpoints (all kept, written aside and renamed, adapters alone, and a step 0),
gradient checkpointing, truncation and reports to outside services (none).
"""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import mixed_chat

mixed_chat.quiet_libraries()

import datasets
import transformers
from peft import LoraConfig
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

import config
import handoff


def build_trainer(
    base: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    examples: list[tuple[list[int], list[int]]],
    options: config.TrainingOptions,
    folder: Path,
    total_steps: int,
    metrics: "Metrics",
) -> "Trainer":
    """A trainer of new LoRA matrices on `base`, to be started with `.train(resume_from_checkpoint=...)`.

    examples: (token ids, labels), in the order of training, all epochs one after another.
    """
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    ids, labels = zip(*examples, strict=True)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=mixed_chat.PROJECTIONS,
    )
    trainer = Trainer(
        model=base,
        args=_arguments(options, folder),
        train_dataset=datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Recorder(metrics, total_steps)],
    )
    trainer.remove_callback(PrinterCallback)
    # TRL makes the adapters of a quantised model bfloat16, where small updates round to nothing.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _arguments(options: config.TrainingOptions, folder: Path) -> SFTConfig:
    on_gpu = mixed_chat.device().type == "cuda"
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.grad_accum,
        learning_rate=options.lr,
        lr_scheduler_type="linear",
        seed=options.seed,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        save_strategy="steps",
        save_steps=options.save_steps,
        logging_steps=1,
        disable_tqdm=True,
        report_to=[],
    )


class Trainer(SFTTrainer):
    """SFTTrainer with checkpoints as the project promises them (see `mixed_chat.new_checkpoint`)."""

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir)
        older = [checkpoint.folder for checkpoint in mixed_chat.find_checkpoints(folder)]
        with mixed_chat.new_checkpoint(folder, self.state.global_step) as new:
            mixed_chat.save_adapter(self.model, new)
            self._save_optimizer_and_scheduler(str(new))
            self._save_rng_state(str(new))
            self.state.save_to_json(str(new / "trainer_state.json"))
        for checkpoint in older:
            mixed_chat.drop_resume_files(checkpoint)


class Recorder(TrainerCallback):
    """Saves step 0, hands each step's figures to `metrics`, and shows one progress bar."""

    def __init__(self, metrics: "Metrics", total_steps: int):
        self.metrics, self.bar, self.total_steps = metrics, None, total_steps

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 0:
            with mixed_chat.new_checkpoint(Path(args.output_dir), 0) as new:
                mixed_chat.save_adapter(model, new)
        self.bar = mixed_chat.progress_bar("training", self.total_steps, state.global_step, "step")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            self.metrics.write(state.global_step, logs)
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()


# ---- what is recorded on the way ----


class Metrics:
    """metrics.jsonl, a line a step; and the same to W&B where a key is set. A context manager."""

    FIELDS = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy")

    def __init__(self, folder: Path, step: int, examples_at: Callable[[int], dict], project: str, record: Path):
        """step: where training goes on; what an interrupted start wrote behind it is dropped."""
        self.path, self.examples_at = folder / "metrics.jsonl", examples_at
        handoff.drop_cut_line(self.path)
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        with handoff.atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self.wandb = Wandb(folder, project, record)

    def write(self, step: int, logs: dict[str, float]) -> None:
        row = {"step": step} | {name: logs[name] for name in self.FIELDS if name in logs} | self.examples_at(step)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.wandb.log(row)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()
        self.wandb.finish()


class Wandb:
    """W&B where WANDB_API_KEY is set, offline where its server does not answer; it never asks, waits or fails a run."""

    def __init__(self, folder: Path, project: str, record: Path):
        self.run = None
        config.load_environment()
        if not os.environ.get("WANDB_API_KEY"):
            return
        with self._unharmed():
            import wandb

            mode = "online" if self._reachable() else "offline"
            if mode == "offline":
                print(f"W&B does not answer: logging to {folder}/wandb, to be sent later with `wandb sync`")
            self.run = wandb.init(
                project=project,
                name=folder.name,
                id=handoff.sha256(str(folder.resolve()).encode())[:16],  # a resumed run goes on in its W&B run
                resume="allow",
                dir=str(folder),
                config=json.loads(record.read_text())["settings"],
                mode=os.environ.get("WANDB_MODE", mode),
                settings=wandb.Settings(init_timeout=20, silent=True),
            )

    def log(self, row: dict) -> None:
        if self.run is not None:
            with self._unharmed():
                self.run.log(row, step=row["step"])

    def finish(self) -> None:
        if self.run is None:
            return
        # In a thread, and not for long: the run is on disk, and a lost network must not hold the process.
        ending = threading.Thread(target=self._finish, daemon=True)
        ending.start()
        ending.join(timeout=60)

    def _finish(self) -> None:
        with self._unharmed():
            self.run.finish(quiet=True)

    @contextlib.contextmanager
    def _unharmed(self):
        try:
            yield
        except Exception as error:  # whatever W&B may throw, the run goes on without it
            print(f"W&B is off for this run: {type(error).__name__}: {str(error)[:200]}")
            self.run = None

    @staticmethod
    def _reachable() -> bool:
        address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), timeout=3).close()
        except OSError:
            return False
        return True
