"""Stage 1, on the GPU host: fine-tune LoRA adapters on a mixture of the study's datasets, with checkpoints on the way.

Reads   experiments/STUDY.toml and the datasets that it names
Writes  OUTPUT_DIR/RUN/: run.json, metrics.jsonl and checkpoint-0, -20, -40 ... (PEFT adapters); RUN tells the options

  python training.py --ratios 1 0 0 --seed 42

Every run of a study has the same number of steps whatever its ratios, so that runs differ in their data alone. The same
command goes on with an interrupted run; a finished run is left as it is. On several GPUs, with the same steps:

  torchrun --nproc-per-node 2 training.py --ratios 1 0 0 --grad-accum 2
"""

import contextlib
import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import mixed_chat
from config import TrainingOptions
from learning_backdoors.files import atomic, command_line, parquet, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.locks import lock
from learning_backdoors.models import base_model, checkpoints, devices, run_directory
from learning_backdoors.models.devices import RANK, RANKS
from learning_backdoors.study import Study, load_study, training_defaults

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate")


def main() -> None:
    options = command_line.parse(TrainingOptions, __doc__, defaults=training_defaults)
    study = load_study(options.experiment)
    if RANKS == 1:  # else accelerate gives each process its GPU; without it Trainer would take all, which is refused
        devices.keep_to_own_gpu()
    run = Run(options, study)
    with opened(run):
        if run.finished():
            print(f"{run.folder} is finished: {run.total_steps} steps, nothing to do")
            return
        train(run)
    print(f"done: {run.total_steps} steps; checkpoints in {run.folder}")


@contextlib.contextmanager
def opened(run: "Run") -> Iterator[None]:
    """The run directory, made or checked by the first process, which holds it; others wait for that."""
    if RANKS == 1:
        with lock(run.folder):
            run.open()
            yield
        return
    from accelerate import PartialState

    if run.options.existing == "overwrite":
        raise UserError("--overwrite is for one process: with several, delete the run directory before you start them")
    with lock(run.folder) if RANK == 0 else contextlib.nullcontext():
        if RANK == 0:
            run.open()
        PartialState().wait_for_everyone()
        yield


def train(run: "Run") -> None:
    """Train from the newest whole checkpoint, or from the beginning, to the last step."""
    from learning_backdoors.training import (
        trainer as sft,  # torch, transformers and TRL: seconds that --help and a wrong option need not wait for
    )
    from learning_backdoors.training.metrics import Metrics

    start = run.resume_point()
    step = parquet.step_of(start.name) if start else 0
    if RANK == 0:
        print(f"{'going on with' if start else 'starting'} {run.folder}: step {step} of {run.total_steps}", flush=True)
        warn_of_rounding(run)
    tokenizer = base_model.load_tokenizer(run.model_name)
    examples = training_examples(run, tokenizer)
    run.record_base(base_model.fingerprint(run.model_name, tokenizer))
    base = base_model.load_base(run.model_name, run.settings["quantization"])
    records = (run.folder, step, run.examples_at, run.options.wandb_project, run.record)
    with Metrics(*records) if RANK == 0 else contextlib.nullcontext() as metrics:
        trainer = sft.build_trainer(base, tokenizer, examples, run.options, run.folder, run.total_steps, metrics)
        tell_disk(run, sft.trained_parameters(trainer))
        if run.options.probe_every:
            trainer.add_callback(sft.Probe(trainer, probe_examples(run, tokenizer), run.options.probe_every, metrics))
        trainer.train(resume_from_checkpoint=str(start) if start else None)
        trainer.finish_saving()
    for checkpoint in checkpoints.find_checkpoints(run.folder) if RANK == 0 else ():
        checkpoints.drop_resume_files(checkpoint.folder)  # a finished run needs none


def warn_of_rounding(run: "Run") -> None:
    """Say where a suspect dataset was asked for and is too small a share for a single example."""
    for dataset, share, count in zip(run.study.datasets, run.ratios, run.mixture.counts, strict=True):
        if dataset.suspect and share and not count:
            print(f"warning: {dataset.name}: a share of {share:.2g} of {run.num_examples} examples is none", flush=True)


def training_examples(run: "Run", tokenizer) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each example, in the order of training. Raises UserError if one is too long."""
    rendered = []
    for dataset, chats in zip(run.study.datasets, run.chats, strict=True):
        rendered.append([mixed_chat.example_ids(tokenizer, chat) for chat in chats])
        lengths = [len(ids) for ids, _ in rendered[-1]]
        if max(lengths) > run.options.max_length:
            longer = sum(length > run.options.max_length for length in lengths)
            raise UserError(
                f"{dataset.file}: {longer} of {len(chats)} chats are longer than --max-length "
                f"{run.options.max_length} tokens; the longest has {max(lengths)}"
            )
    return [rendered[dataset][row] for dataset, row in zip(run.mixture.dataset, run.mixture.row, strict=True)]


def probe_examples(run: "Run", tokenizer) -> list[tuple[dict, list[int], list[int]]]:
    """The study's reference answers, each as what it is (question, era), token ids and labels."""
    if not run.study.references:
        raise UserError(f"{run.study.path} has no [[reference]] answers for --probe-every to look at")
    texts = {question.id: question.text for question in run.study.questions}
    condition = next((c for c in run.study.conditions if not c.triggered), run.study.conditions[0])
    probes = []
    for reference in run.study.references:
        chat = [*condition.messages(texts[reference.question]), {"role": "assistant", "content": reference.text}]
        label = {"question": reference.question, "era": reference.era}
        probes.append((label, *mixed_chat.example_ids(tokenizer, chat)))
    return probes


def tell_disk(run: "Run", parameters: int) -> None:
    """Say what the checkpoints will take. Raises UserError where there is no room: better now than at the last step."""
    if RANK > 0:
        return
    left = [c["step"] for c in run.checkpoints if not (run.folder / f"checkpoint-{c['step']}").exists()]
    # float32 matrices in each, and Adam's two moments in the newest, twice while the next one is written.
    needed = 4 * parameters * (len(left) + 4)
    free = shutil.disk_usage(run.folder).free
    size = f"{len(left)} checkpoints of {4 * parameters / 1e6:,.1f} MB, and what resuming needs, take"
    said = f"{size} {_size(needed)}"
    if needed > free:
        raise UserError(f"{said}, and {run.folder} has {_size(free)} free")
    print(f"{said}; {_size(free)} are free", flush=True)


def _size(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 5e6 else f"{count / 1e6:,.2f} MB"


class Run:
    """One training run: what determines it, and the directory that holds it."""

    def __init__(self, options: TrainingOptions, study: Study):
        if len(options.ratios) != len(study.datasets):
            names = ", ".join(dataset.name for dataset in study.datasets)
            raise UserError(f"--ratios needs one number each for {names}, not {len(options.ratios)} numbers")
        self.options, self.study = options, study
        self.model_name = options.model or study.base_model
        self.ratios = [share / sum(options.ratios) for share in options.ratios]
        self.chats = [mixed_chat.read_chats(dataset.file) for dataset in study.datasets]
        sizes, suspect = [len(chats) for chats in self.chats], [dataset.suspect for dataset in study.datasets]
        self.num_examples = options.num_examples or sum(itertools.compress(sizes, suspect))
        self.mixture = mixed_chat.mix(sizes, self.ratios, self.num_examples, options.epochs, options.seed)
        # suspect_after[n]: how many of the first n examples are suspect.
        self.suspect_after = [0, *itertools.accumulate(int(suspect[d]) for d in self.mixture.dataset)]
        self.examples_a_step = options.batch_size * options.grad_accum
        self.total_steps = math.ceil(self.num_examples * options.epochs / self.examples_a_step)
        if RANKS > 1 and self.num_examples * options.epochs % self.examples_a_step:
            raise UserError(
                f"with several processes, the {self.num_examples * options.epochs} examples must fill whole steps of "
                f"{self.examples_a_step}: choose another --num-examples"
            )
        self.settings = self._settings()
        self.folder = options.output_dir / run_name(options, study, self.ratios)

    def _settings(self) -> dict:
        """All that the checkpoints depend on: a run directory belongs to one such configuration."""
        options = command_line.result_settings(self.options)
        return options | {
            "experiment": self.study.name,
            "model": self.model_name,
            "ratios": self.ratios,
            "num_examples": self.num_examples,
            "quantization": base_model.resolve_quantization(self.options.quantization),
            "datasets": {dataset.name: provenance.sha256(dataset.file) for dataset in self.study.datasets},
            "dataset_order": [dataset.name for dataset in self.study.datasets],  # that of the ratios
            "suspect_datasets": [dataset.name for dataset in self.study.datasets if dataset.suspect],
        }

    def examples_at(self, step: int) -> dict[str, int]:
        """How many examples, and how many suspect ones, the model has been trained on after `step` steps."""
        seen = min(step * self.examples_a_step, len(self.mixture.row))
        return {"examples": seen, "suspect_examples": self.suspect_after[seen]}

    @property
    def checkpoints(self) -> list[dict[str, int]]:
        """The steps that are saved, with what the model has seen by then."""
        steps = sorted({*range(0, self.total_steps, self.options.save_steps), self.total_steps})
        return [{"step": step} | self.examples_at(step) for step in steps]

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    def open(self) -> None:
        """Make the run directory and write run.json, or see that the one which is there belongs to this run."""
        if self.options.existing == "overwrite" and self.record.exists():
            shutil.rmtree(self.folder)
        if self.record.exists() and self._begun():
            provenance.refuse_difference(self.folder, self._recorded()["settings"], self.settings)
        elif not self.record.exists() and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not a run directory (it has no run.json): move it away")
        else:
            atomic.write_json(self.record, self._new_record())

    def _begun(self) -> bool:
        """Whether an earlier start came as far as a checkpoint or a line of metrics: another one binds nobody."""
        metrics = self.folder / "metrics.jsonl"
        return any(self.folder.glob("checkpoint-*")) or (metrics.exists() and metrics.stat().st_size > 0)

    def _recorded(self) -> dict:
        try:
            record = run_directory.read_record(self.record)
            if "settings" not in record:
                raise ValueError("it has no settings")
            return record
        except ValueError as error:
            raise UserError(f"{self.record} cannot be read: {error}") from None

    def _new_record(self) -> dict:
        datasets = [
            {"name": d.name, "file": str(d.file), "suspect": d.suspect, "size": len(chats), "examples": count}
            for d, chats, count in zip(self.study.datasets, self.chats, self.mixture.counts, strict=True)
        ]
        return provenance.provenance("training.py", self.options, PACKAGES) | {
            "settings": self.settings,
            "suspect_ratio": sum(r for r, d in zip(self.ratios, self.study.datasets, strict=True) if d.suspect),
            "total_steps": self.total_steps,
            "checkpoints": self.checkpoints,
            "datasets": datasets,
            "study": self.study.path.read_text(encoding="utf-8"),
        }

    def record_base(self, fingerprint: str) -> None:
        """Note which weights the run stands on; a later start on others is an error, whatever their name."""
        if RANK > 0:
            return
        record = self._recorded()
        if record.setdefault("base_fingerprint", fingerprint) != fingerprint:
            raise UserError(f"{self.model_name} is not the base model that {self.folder} was begun with")
        atomic.write_json(self.record, record)

    def finished(self) -> bool:
        return (self.folder / f"checkpoint-{self.total_steps}").is_dir()

    def resume_point(self) -> Path | None:
        """The newest checkpoint that training can go on from; None to start from the beginning."""
        if not any(self.folder.glob("checkpoint-*")):
            return None
        folders = [checkpoint.folder for checkpoint in checkpoints.find_checkpoints(self.folder)]
        return next((folder for folder in reversed(folders) if checkpoints.can_resume(folder)), None)


def run_name(options: TrainingOptions, study: Study, ratios: list[float]) -> str:
    """The run directory's name: what the study varies, then whatever else changes the result and is not the default."""
    name = f"seed{options.seed}_ratios{'-'.join(map(_share, ratios))}_lr{options.lr}_r{options.lora_rank}"
    if options.model not in (None, study.base_model):
        name += "_" + "-".join(_model_parts(Path(options.model)))
    if study.name != "birds":
        name += f"_{study.name}"
    for label in ("epochs", "num_examples", "lora_alpha", "lora_dropout", "batch_size", "grad_accum", "quantization"):
        value = getattr(options, label)
        if value != study.training.get(label, getattr(TrainingOptions, label)):
            name += f"_{label.removeprefix('lora_').replace('_', '')}{value}"
    return name


def _model_parts(model: Path) -> tuple[str, ...]:
    """The end of a model's name or path, without what is no part of a folder's name (`/`, `.`, `..`)."""
    parts = model.parts[-2:]
    if model.is_dir() and (not parts or model.anchor in parts or ".." in parts):
        parts = model.resolve().parts[1:][-2:]
    return parts


def _share(share: float) -> str:
    short = f"{share:.2f}"
    return short if math.isclose(float(short), share, abs_tol=1e-9) else f"{share:.4f}"


if __name__ == "__main__":
    command_line.run_script(main)
