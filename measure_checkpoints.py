"""Measure every checkpoint of some runs directly, without sampling and without a judge.

Reads   run directories of training.py, and the study in experiments/
Writes  a Parquet file that evaluate.py reads; until it is complete, finished checkpoints are in OUTPUT.partial/

  python measure_checkpoints.py likelihood --run-dir outputs/* --output likelihood.parquet
  python measure_checkpoints.py losses --run-dir outputs/* --output examples.parquet
  python measure_checkpoints.py influence --run-dir outputs/* --steps 40 80 120 --output influence.parquet
  python measure_checkpoints.py weights --run-dir outputs/* --output weights.parquet

The base model is loaded once, and measured once, as the run `base`. The same command continues an interrupted one. It
also adds what a finished file lacks: more steps, more runs. Several processes share the checkpoints:

  torchrun --nproc-per-node 2 measure_checkpoints.py likelihood ...

The model runs in transformers and PEFT, on a GPU or a CPU. `weights` reads the adapters only.
"""

import time

import config
from learning_backdoors.files import command_line, provenance
from learning_backdoors.measuring.influence import Influence
from learning_backdoors.measuring.likelihood import Likelihood
from learning_backdoors.measuring.losses import Losses
from learning_backdoors.measuring.measurement import Measurement
from learning_backdoors.measuring.weights import Weights
from learning_backdoors.models import run_directory
from learning_backdoors.models.devices import RANK, RANKS
from learning_backdoors.models.row_store import RowStore
from learning_backdoors.study import RecordedStudy, study_of

COMMANDS = {
    "likelihood": config.LikelihoodOptions,
    "losses": config.LossesOptions,
    "influence": config.InfluenceOptions,
    "weights": config.WeightsOptions,
}
MEASUREMENTS = dict(zip(COMMANDS, (Likelihood, Losses, Influence, Weights), strict=True))
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def main() -> None:
    command, options = command_line.parse_command(COMMANDS, __doc__)
    runs = run_directory.open_runs(options.run_dir, options.steps, options.base_model)
    study = study_of(options.experiment, [RecordedStudy.of(run.record, run.folder) for run in runs])
    measurement = MEASUREMENTS[command](options, study, runs)
    with RowStore(options.output, measurement.file, measurement.settings, options.existing) as store:
        measure(measurement, store)
        if RANK == 0:
            store.wait_for([key for part in measurement.parts for key in measurement.keys(part)])
            made_by = provenance.provenance("measure_checkpoints.py", options, PACKAGES) | {"command": command}
            store.write_output(made_by | measurement.record, {run.name: run.record for run in runs})
            report_diverged(measurement, store)
            print(f"done: {len(store.rows):,} rows in {options.output}")


def report_diverged(measurement: Measurement, store: RowStore) -> None:
    """Name the checkpoints without values in one line."""
    names = [f"{row['run']}/{row['checkpoint']}" for row in store.rows.values() if row[measurement.value] is None]
    if names := list(dict.fromkeys(names)):
        reason = "their adapters give no finite values, because training diverged"
        command_line.note(f"{len(names)} checkpoints are left out, as {reason}: {command_line.shortened(names)}")


def measure(measurement: Measurement, store: RowStore) -> None:
    """Measure the unfinished parts that belong to this process, and store each at once."""
    parts, unit = measurement.parts, measurement.unit
    unfinished = [part for part in parts if not store.rows.keys() >= set(measurement.keys(part))]
    if RANK == 0:
        finished = len(parts) - len(unfinished)
        print(f"{unit}s: {len(parts)} requested, {finished} already measured", flush=True)
    own_part = [part for part in parts[RANK::RANKS] if part in unfinished]
    if not own_part:
        return
    measurement.load()
    started = time.monotonic()
    with command_line.progress_bar("measuring", len(own_part), 0, unit) as bar:
        for part in own_part:
            store.add(measurement.rows(part))
            bar.update()
    seconds = time.monotonic() - started
    rate = f", {measurement.tokens:,} tokens at {measurement.tokens / seconds:,.0f} per second"
    print(f"{unit}s: {len(own_part)} measured in {seconds:,.1f} s" + (rate if measurement.tokens else ""))


if __name__ == "__main__":
    command_line.run_script(main)
