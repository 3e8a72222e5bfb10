"""Stage 1, on the GPU host: fine-tune LoRA adapters on a mixture of the study's datasets, and save checkpoints.

Reads   experiments/STUDY.toml and its datasets
Writes  OUTPUT_DIR/RUN/: run.json, metrics.jsonl, checkpoint-0, -20, -40, ... (PEFT adapters); RUN names the options

  python training.py --ratios 1 0 0 --seed 42

By default, all runs of a study have the same number of steps. So other ratios change only the data. The same command
resumes an interrupted run and leaves a finished run as it is. A sweep is many runs, trained at the same time:

  python training.py --sweep experiments/sweeps/birds.toml

On several GPUs, a single run shares each step among them, and a sweep shares its runs:

  torchrun --nproc-per-node 2 training.py --ratios 1 0 0 --grad-accum 2
  torchrun --nproc-per-node 2 training.py --sweep experiments/sweeps/birds.toml

Without a GPU, a server of the Tinker API trains a run or a sweep (docs/tinker.md). --dry-run prints what it costs:

  python training.py --ratios 1 0 0 --backend tinker --lora-alpha 32 --dry-run
"""

from contextlib import ExitStack, closing

from config import TrainingOptions
from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, checkpoints, devices
from learning_backdoors.models.devices import RANK, RANKS
from learning_backdoors.study import load_study, training_defaults
from learning_backdoors.training.run import TrainingRun, check_disk_space
from learning_backdoors.training.sweep import BaseModels, Sweep, counted, sweep_runs, warn_of_datasets_left_out


def main() -> None:
    options, given = command_line.parse_given(TrainingOptions, __doc__, defaults=training_defaults)
    is_remote = options.backend == "tinker"
    if is_remote and RANKS > 1:
        raise UserError("--backend tinker needs no launcher: one process trains many runs (--stack)")
    if options.dry_run:
        print_cost(options, given)
        return
    if options.sweep:
        with devices.end_after_others():
            train_sweep(options, given)
        return
    study = load_study(options.experiment)
    if RANKS == 1 and not is_remote:  # under a launcher, accelerate takes the local rank's GPU and must see them all
        devices.keep_to_own_gpu()
    run = TrainingRun(options, study)
    with run.locked_folder():
        if run.finished():
            print(f"{run.folder} is finished: {run.total_steps} steps, nothing to do")
            return
        if diverged := run.diverged():
            raise UserError(f"{run.folder} diverged {diverged}: try a lower --lr, or train it again with --overwrite")
        if is_remote:
            train_remotely([run], [run])
        else:
            train(run)
    print(f"done: {run.total_steps} steps; checkpoints in {run.folder}")


def train(run: TrainingRun) -> None:
    """Train from the newest checkpoint that can be resumed, or from the beginning, to the last step."""
    # Imported here, so that --help and option errors appear at once.
    from learning_backdoors.training.base_checks import precision_notice
    from learning_backdoors.training.metrics import MetricsLog
    from learning_backdoors.training.probes import Probe, reference_examples
    from learning_backdoors.training.recorder import Recorder
    from learning_backdoors.training.trainer import build_trainer

    options, is_main = run.options, RANK == 0
    checkpoint, step = run.resume_point()
    if is_main:
        if checkpoint is None:
            checkpoints.drop_resume_files(run.folder)  # of a sweep that began this run
        print(f"{'resuming' if checkpoint else 'starting'} {run.folder}: step {step} of {run.total_steps}", flush=True)
        warn_of_datasets_left_out([run])

    tokenizer = base_model.load_tokenizer(run.model_name)
    examples = run.examples(tokenizer)
    references = reference_examples(run.study, tokenizer) if options.probe_every else []
    if references:
        run.record_references()
    run.record_base(base_model.fingerprint(run.model_name, tokenizer))
    base = base_model.load_base(run.model_name, run.precision)
    trainer = build_trainer(run, base, tokenizer, examples)

    with ExitStack() as stack:
        if is_main:
            if options.quantization == "auto" and (notice := precision_notice(base)):
                print(notice, flush=True)
            check_disk_space({run: trainer.get_num_trainable_parameters()})
            log = stack.enter_context(closing(MetricsLog(run, step)))
            trainer.add_callback(Recorder(log))
            if references:
                trainer.add_callback(Probe(trainer, references, options.probe_every, log))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.writer.wait()  # the files to resume are needed until the last checkpoint is complete
    if is_main:
        checkpoints.drop_resume_files(run.folder)


def print_cost(options: TrainingOptions, given: dict) -> None:
    """Print what a run, or a sweep, would cost on a server of the Tinker API."""
    from learning_backdoors.training.tinker_costs import print_estimate

    print_estimate(sweep_runs(given) if options.sweep else [TrainingRun(options, load_study(options.experiment))])


def train_sweep(options: TrainingOptions, given: dict) -> None:
    """Train the runs of a sweep that are not finished, many at a time. Each of several processes takes its share.

    given: the options on the command line. They hold for all runs.
    """
    if options.backend == "local":
        devices.keep_to_own_gpu()
    runs = sweep_runs(given)
    sweep = Sweep(runs[RANK::RANKS])
    share = f" (process {RANK} of {RANKS})" if RANKS > 1 else ""
    with sweep.locked():
        print(f"{options.sweep}{share}: {sweep.describe()}", flush=True)
        if options.backend == "tinker":
            train_remotely([run for group in sweep.groups() for run in group], runs)
        else:
            train_groups(sweep.groups(), options.stack)
        sweep.refuse_unfinished()
    print(f"done{share}: {counted(sweep.runs)} finished; checkpoints in {options.output_dir}/*/")


def train_groups(groups: list[list[TrainingRun]], stack: int | None) -> None:
    """Train groups of runs on this machine, one group after the other. stack: runs that train at the same time."""
    base_models = BaseModels()
    if groups:
        from learning_backdoors.training.stacked_trainer import train_together
    for group in groups:
        warn_of_datasets_left_out(group)
        train_together(group, stack, base_models.load)


def train_remotely(runs: list[TrainingRun], all_runs: list[TrainingRun]) -> None:
    """Train unfinished runs on a server of the Tinker API. Needs no torch. all_runs: those that share --max-cost."""
    if runs:
        from learning_backdoors.training.tinker_costs import Budget
        from learning_backdoors.training.tinker_trainer import train_on_server

        warn_of_datasets_left_out(runs)
        train_on_server(runs, Budget(all_runs))


if __name__ == "__main__":
    command_line.run_script(main)
