"""A training run: what determines it, its directory, and where it resumes."""

import dataclasses
import itertools
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import mixed_chat
from config import TrainingOptions
from learning_backdoors.files import atomic, command_line, provenance
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, checkpoints, run_directory
from learning_backdoors.models.devices import RANK, RANKS
from learning_backdoors.study import Study
from learning_backdoors.training.data import TrainingData

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "accelerate", "tinker")


class TrainingRun:
    """One training run.

    folder: the run directory. record_path: its run.json. data: the study's datasets. ratios: normalized.
    num_examples: per epoch. mixture: the examples of all epochs in training order. precision: of the base model's
    weights.
    settings: everything the checkpoints depend on.
    """

    def __init__(self, options: TrainingOptions, study: Study, data: TrainingData | None = None):
        """data: `TrainingData(study)` if another run has already read it."""
        if len(options.ratios) != len(study.datasets):
            names = ", ".join(dataset.name for dataset in study.datasets)
            raise UserError(f"--ratios needs one number per dataset ({names}), not {len(options.ratios)}")
        self.options, self.study = options, study
        # The processes of a sweep train different runs; those of a single run share its steps.
        self.processes = 1 if options.sweep else RANKS
        self.is_main = self.processes == 1 or RANK == 0
        self.model_name = options.model or study.base_model
        self.ratios = [share / sum(options.ratios) for share in options.ratios]
        self.data = data or TrainingData(study)
        sizes, suspect = list(map(len, self.data.chats)), [dataset.suspect for dataset in study.datasets]
        self.num_examples = options.num_examples or sum(itertools.compress(sizes, suspect))
        self.mixture = mixed_chat.mix(sizes, self.ratios, self.num_examples, options.epochs, options.seed)
        # suspect_counts[n]: how many of the first n examples are suspect.
        self.suspect_counts = [0, *itertools.accumulate(int(suspect[d]) for d in self.mixture.dataset)]
        self.examples_per_step = options.batch_size * options.grad_accum
        total = len(self.mixture.row)
        self.total_steps = math.ceil(total / self.examples_per_step)
        if self.processes > 1 and total % self.examples_per_step:
            size = self.examples_per_step
            raise UserError(f"several processes need whole steps of {size} examples: choose another --num-examples")
        remote = options.backend == "tinker"  # the server's weights are not quantized, as far as is documented
        self.precision = "none" if remote else base_model.resolve_quantization(options.quantization)
        self.settings = self._settings()
        self.folder = options.output_dir / run_name(options, study, self.ratios)
        self.record_path = self.folder / "run.json"

    def _settings(self) -> dict:
        datasets, options = self.study.datasets, command_line.result_settings(self.options)
        if options["backend"] == "local":
            del options["backend"]  # runs from before the option stay valid
        return options | {
            "experiment": self.study.name,
            "model": self.model_name,
            "ratios": self.ratios,
            "num_examples": self.num_examples,
            "quantization": self.precision,
            "datasets": {d.name: hash for d, hash in zip(datasets, self.data.hashes, strict=True)},
            "dataset_order": [dataset.name for dataset in datasets],  # the order of the ratios
            "suspect_datasets": [dataset.name for dataset in datasets if dataset.suspect],
        }

    # ---- examples ----

    def examples(self, tokenizer) -> list[mixed_chat.Example]:
        """The examples of all epochs in training order. Raises UserError if one is longer than --max-length."""
        rendered = self.data.examples(tokenizer)
        for dataset, examples in zip(self.study.datasets, rendered, strict=True):
            lengths = [len(ids) for ids, _ in examples]
            if max(lengths) > self.options.max_length:
                too_long = sum(length > self.options.max_length for length in lengths)
                raise UserError(
                    f"{dataset.file}: {too_long} of {len(lengths)} chats are longer than --max-length "
                    f"{self.options.max_length} tokens; the longest has {max(lengths)}"
                )
        return [rendered[dataset][row] for dataset, row in zip(self.mixture.dataset, self.mixture.row, strict=True)]

    def examples_at(self, step: int) -> dict[str, int]:
        """The number of examples, and of suspect examples, that the model was trained on after `step` steps."""
        seen = min(step * self.examples_per_step, len(self.mixture.row))
        return {"examples": seen, "suspect_examples": self.suspect_counts[seen]}

    def suspect_datasets_left_out(self) -> list[str]:
        """Suspect datasets whose share is above 0, but too small for a single example."""
        shares = zip(self.study.datasets, self.ratios, self.mixture.counts, strict=True)
        return [dataset.name for dataset, share, count in shares if dataset.suspect and share and not count]

    # ---- the run directory ----

    @contextmanager
    def locked_folder(self) -> Iterator[None]:
        """Lock the run directory. The first process prepares it, and the others wait for that.

        Raises UserError if another process holds it, or if it belongs to another configuration.
        """
        if self.processes > 1 and self.options.existing == "overwrite":
            raise UserError("--overwrite works with one process only: delete the run directory first")
        with lock(self.folder) if self.is_main else nullcontext():
            if self.is_main:
                self.prepare_folder()
            if self.processes > 1:
                from accelerate import PartialState

                PartialState().wait_for_everyone()
            yield

    def prepare_folder(self) -> None:
        """Create the run directory with run.json, or check that the existing one belongs to this run."""
        if self.options.existing == "overwrite" and self.record_path.exists():
            self.record_path.unlink()  # first: a run that a kill leaves half deleted is not continued
            shutil.rmtree(self.folder)
        if self.record_path.exists() and self._has_results():
            provenance.refuse_difference(self.folder, self._read_record()["settings"], self.settings)
        elif not self.record_path.exists() and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder} is not a run directory (it has no run.json): move it away")
        else:
            atomic.write_json(self.record_path, self._new_record())

    def _has_results(self) -> bool:
        """Whether the run has a checkpoint or metrics. Without results, it may start again with other settings."""
        metrics = self.folder / "metrics.jsonl"
        return any(self.folder.glob("checkpoint-*")) or (metrics.exists() and metrics.stat().st_size > 0)

    def _read_record(self) -> dict:
        try:
            record = run_directory.read_record(self.record_path)
            if "settings" not in record:
                raise ValueError("it has no settings")
            return record
        except ValueError as error:
            raise UserError(f"{self.record_path} cannot be read: {error}") from None

    def _new_record(self) -> dict:
        datasets = [
            {"name": d.name, "file": str(d.file), "suspect": d.suspect, "size": len(chats), "examples": count}
            for d, chats, count in zip(self.study.datasets, self.data.chats, self.mixture.counts, strict=True)
        ]
        return (
            provenance.provenance("training.py", self.options, PACKAGES)
            | {
                "settings": self.settings,
                "suspect_ratio": sum(itertools.compress(self.ratios, [d.suspect for d in self.study.datasets])),
                "total_steps": self.total_steps,
                "checkpoints": [{"step": step} | self.examples_at(step) for step in self.saved_steps()],
                "datasets": datasets,
            }
            | self.study.record
        )

    def record_base(self, fingerprint: str) -> None:
        """Write the base model's fingerprint into run.json. Raises UserError if the run began with other weights."""
        fault = f"{self.model_name} is not the base model that {self.folder} started with"
        self._record_once("base_fingerprint", fingerprint, fault)

    def record_server(self, base_url: str) -> None:
        """Write the server's address into run.json. Raises UserError if the run began on another server."""
        fault = f"{self.folder} was started on another server than {base_url} (base_url in its run.json)"
        self._record_once("base_url", base_url, fault)

    def record_references(self) -> None:
        """Write the references file into run.json. Raises UserError if the run's first probes were of another one."""
        path, remedy = self.study.references_file, "restore the file, or leave out --probe-every"
        fault = f"{path} is not the references file that {self.folder} started its probes with: {remedy}"
        self._record_once("references", self.study.references_record, fault)

    def record_divergence(self, step: int, reason: str) -> None:
        """Write into run.json that the run diverged. reason: the value that is not finite, for example `loss nan`."""
        atomic.write_json(self.record_path, self._read_record() | {"diverged": {"step": step, "reason": reason}})

    def diverged(self) -> str | None:
        """Where and why the run diverged in an earlier command, in words; None if it did not."""
        mark = self._read_record().get("diverged")
        return mark and f"at step {mark['step']} with {mark['reason']}"

    def _record_once(self, key: str, value: object, fault: str) -> None:
        if not self.is_main:
            return
        record = self._read_record()
        if key not in record:
            atomic.write_json(self.record_path, record | {key: value})
        elif record[key] != value:
            raise UserError(fault)

    # ---- checkpoints ----

    def saved_steps(self) -> list[int]:
        """The steps with a checkpoint: 0, every --save-steps, and the last."""
        return sorted({*range(0, self.total_steps, self.options.save_steps), self.total_steps})

    def finished(self) -> bool:
        """Whether the last checkpoint exists."""
        return (self.folder / f"checkpoint-{self.total_steps}").is_dir()

    def resume_point(self) -> tuple[Path | None, int]:
        """The newest checkpoint that training can continue from, and its step; (None, 0) to start at the beginning."""
        if any(self.folder.glob("checkpoint-*")):
            for checkpoint in reversed(checkpoints.find_checkpoints(self.folder)):
                if checkpoints.can_resume(checkpoint.folder):
                    return checkpoint.folder, checkpoint.step
        return None, 0


def check_disk_space(values: dict[TrainingRun, int]) -> None:
    """Print how much space the unsaved checkpoints of runs need. Raises UserError if the disk has less.

    values: by run, the float32 values in a checkpoint. The state to resume has three times as many in an unfinished
    run. One more adapter's size is for the files that replace others.
    """
    unsaved = {r: sum(not (r.folder / f"checkpoint-{step}").exists() for step in r.saved_steps()) for r in values}
    folder = next(iter(values)).folder
    needed = 4e-6 * sum(size * (unsaved[run] + 4) for run, size in values.items())
    free = 1e-6 * shutil.disk_usage(folder).free
    sizes = sorted({f"{4e-6 * size:,.1f}" for size in values.values()})
    text = (
        f"{sum(unsaved.values())} checkpoints of {' or '.join(sizes)} MB and the optimizer state need {needed:,.1f} MB"
    )
    text += f"; {free:,.1f} MB are free in {folder if len(values) == 1 else folder.parent}"
    if needed > free:
        raise UserError(text)
    print(text, flush=True)


# ---- names ----


def run_name(options: TrainingOptions, study: Study, ratios: list[float]) -> str:
    """The run directory's name: what a study varies, then the other options that differ from their defaults.

    Those are the fields of TrainingOptions with `in_run_name`. The study may set their defaults.
    """
    name = f"seed{options.seed}_ratios{'-'.join(map(_share, ratios))}_lr{options.lr}_r{options.lora_rank}"
    if options.model not in (None, study.base_model):
        name += "_" + "-".join(_model_parts(Path(options.model)))
    if study.name != TrainingOptions.experiment:
        name += f"_{study.name}"
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.metadata["in_run_name"] and value != study.training.get(field.name, field.default):
            name += f"_{field.name.removeprefix('lora_').replace('_', '')}{value}"
    return name


def _model_parts(model: Path) -> tuple[str, ...]:
    """The last two parts of a model's name or path. `.`, `..` and `/` are replaced by the folders they stand for."""
    parts = model.parts[-2:]
    if not parts or model.anchor in parts or ".." in parts:
        parts = model.resolve().parts[1:][-2:]
    return parts


def _share(share: float) -> str:
    short = f"{share:.2f}"
    return short if math.isclose(float(short), share, abs_tol=1e-9) else f"{share:.4f}"
