"""Speed and memory of `training.py --sweep`, next to single runs.

    python -m benchmarks.eight_billion /tmp/shape
    python -m benchmarks.sweep /tmp/shape/model --outputs /dev/shm/sweep

Each part starts training.py as a user does, with timers around some of its methods (timed_training.py):

    single        one run
    singles-4     four runs, one command after another
    sweep-64      one sweep of 64 runs: four ratios x 16 seeds. Any multiple of 4
    gpus-2x64     the same sweep, shared by two GPUs
    probes-64     the same sweep with probes every 20 steps, then evaluate.py on the run directories

A part that fails or passes its time limit does not stop the others. Its outputs are deleted before the next one starts:
64 runs of an 8B model with 12 checkpoints each have 67 GB. --keep FOLDER keeps the results of evaluate.py, as a zip.
Options after -- go to training.py:

    python -m benchmarks.sweep /tmp/shape/model --outputs /dev/shm/sweep --parts single sweep-128 -- --save-steps 104
    python -m benchmarks.sweep tiny_world/model --outputs /tmp/sweep --parts singles-32 sweep-32 -- --lr 7e-4

wall_s      the whole command
loaded_s    what is left of it after the base model was loaded
x single    wall_s divided by that of one run
one by one  how many times faster the sweep is than as many single runs, one after another
step_ms     median time of a step of all runs
host_GB     peak main memory of a process, mapped files included
exit        what the timers do not see: the end of the process and, with several GPUs, the launcher
diff        mean absolute difference between the losses of a run of the sweep and those of the same single run
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from learning_backdoors.files.project import ROOT

RATIOS = ([1, 0, 0], [0.5, 0.25, 0.25], [0.2, 0.4, 0.4], [0, 0.5, 0.5])
FIRST_SEED = 42
PART = re.compile(r"single|singles-\d+|(?:sweep|probes)-(\d+)|gpus-\d+x(\d+)")
# Parts of the main thread's time, in the order of the last table.
PARTS_OF_TIME = ("imports", "folders", "examples", "load", "choice of slots", "initial matrices", "filling slots")
PARTS_OF_TIME += ("graphs", "steps", "probes", "copies", "writing", "other", "exit")


def sweep_file(folder: Path, runs: int) -> Path:
    """A sweep of `runs` runs: the four ratios, and as many seeds as needed."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + runs // len(RATIOS)))
    file = folder / "sweep.toml"
    file.write_text(f"[sweep.grid]\nseed = {seeds}\nratios = {[list(ratios) for ratios in RATIOS]}\n")
    return file


def run_command(command: list, limit: float) -> tuple[float, str]:
    """Run a command and its children. Returns seconds and output. Raises RuntimeError if it fails or takes too long."""
    started = time.monotonic()
    environment = os.environ | {"WANDB_API_KEY": "", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = f"killed after {limit:.0f} s"
        seconds = time.monotonic() - started
        output.seek(0)
        printed = output.read()
    if code:
        raise RuntimeError(f"exit code {code}\n{printed[-3000:]}")
    return seconds, printed


class Task:
    """Commands whose outputs are in `folder`. options: the command line of the benchmark."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.options = folder, options

    def train(self, line: list, gpus: int = 1) -> dict:
        """Time of one command of training.py, and what its timers say (of the slowest process)."""
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={gpus}"] if gpus > 1 else []
        command = [sys.executable, *launcher, "-m", "benchmarks.timed_training", self.folder / "report.json"]
        command += ["--model", self.options.model, "--output-dir", self.folder / "runs", *self.options.training, *line]
        seconds, printed = run_command(command, self.options.limit)
        print(printed[-1200:].strip(), flush=True)
        reports = [json.loads(file.read_text()) for file in self.folder.glob("report.json*")]
        slowest = max(reports, key=lambda report: sum(report["seconds"].values()))
        parts = slowest["seconds"]
        return {
            "wall_s": seconds,
            "loaded_s": seconds - parts["imports"] - parts.get("load", 0),
            "step_ms": 1e3 * float(np.median(slowest["step_s"])),
            "parts": parts | {"exit": seconds - sum(parts.values())},
        } | {key: max(report[key] for report in reports) for key in slowest if key.endswith("GB")}

    def single(self, seed: int = FIRST_SEED) -> dict:
        return self.train(["--ratios", "1", "0", "0", "--seed", seed])

    def sweep(self, runs: int, gpus: int = 1, line: tuple = ()) -> dict:
        return self.train(["--sweep", sweep_file(self.folder, runs), *line], gpus)

    def probed_sweep(self, runs: int) -> dict:
        """A sweep with probes and the evaluation of its probes."""
        result, figures = self.sweep(runs, line=("--probe-every", "20")), self.folder / "figures"
        command = [sys.executable, "evaluate.py", "--output-dir", figures, "--format", "png", "--input"]
        seconds, printed = run_command([*command, *sorted(self.folder.glob("runs/seed*"))], self.options.limit)
        print(printed[-1200:].strip(), flush=True)
        if self.options.keep:
            shutil.make_archive(str(self.options.keep / f"probes-{runs}"), "zip", figures)
        return result | {"evaluate_s": seconds, "wall_s": result["wall_s"] + seconds}

    def losses(self) -> list[float]:
        """The losses of the run that all parts have in common."""
        [file] = self.folder.glob(f"runs/seed{FIRST_SEED}_ratios1.00-0.00-0.00_*/metrics.jsonl")
        return [row["loss"] for row in map(json.loads, file.read_text().splitlines()) if "loss" in row]


def measure(options, part: str) -> dict:
    """The results of one part, in a folder that is deleted afterwards."""
    kind, _, count = part.partition("-")
    options.outputs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.outputs) as folder:
        task = Task(Path(folder), options)
        if kind == "single":
            result = task.single() | {"runs": 1}
        elif kind == "singles":
            results = [task.single(FIRST_SEED + i) for i in range(int(count))]
            result = results[0] | {"runs": len(results), "wall_s": sum(result["wall_s"] for result in results)}
        elif kind == "sweep":
            result = task.sweep(int(count)) | {"runs": int(count)}
        elif kind == "probes":
            result = task.probed_sweep(int(count)) | {"runs": int(count)}
        else:
            gpus, runs = map(int, count.split("x"))
            result = task.sweep(runs, gpus) | {"runs": runs}
        return result | {"losses": task.losses()}


def comparisons(result: dict, one: dict | None) -> dict:
    """A sweep next to the single run, if there is one."""
    if one is None:
        return {}
    values = {
        "x single": result["wall_s"] / one["wall_s"],
        "one by one": result["runs"] * one["wall_s"] / result["wall_s"],
    }
    if len(one["losses"]) == len(result["losses"]):
        values["diff"] = np.abs(np.subtract(one["losses"], result["losses"])).mean()
    return values


def show(results: dict[str, dict]) -> None:
    """Two short tables: totals, and the parts of the time."""
    columns = ("runs", "wall_s", "loaded_s", "evaluate_s", "x single", "one by one", "step_ms", "GPU_GB", "host_GB")
    totals = {part: result | comparisons(result, results.get("single")) for part, result in results.items()}
    parts = {part: result["parts"] for part, result in results.items()}
    for rows, names in ((totals, (*columns, "diff")), (parts, PARTS_OF_TIME)):
        table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(names))
        print(table.dropna(axis="columns", how="all").to_string(float_format="{:.3g}".format, na_rep=""), "\n")


def part_name(text: str) -> str:
    if not (match := PART.fullmatch(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a part")
    if int(match[1] or match[2] or 0) % len(RATIOS):
        raise argparse.ArgumentTypeError(f"{text}: the runs of a sweep must be a multiple of {len(RATIOS)}")
    return text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the base model")
    parser.add_argument("--outputs", type=Path, required=True, help="folder for run directories")
    parser.add_argument("--parts", nargs="+", type=part_name, default=["single", "sweep-8", "sweep-32", "sweep-64"])
    parser.add_argument("--limit", type=float, default=240, help="seconds for one command")
    parser.add_argument("--keep", type=Path, help="folder for the results of evaluate.py")
    line = sys.argv[1:]
    end = line.index("--") if "--" in line else len(line)
    options = parser.parse_args(line[:end])
    options.training = ["--quantization", "none", *line[end + 1 :]]
    return options


def main() -> None:
    options = parse()
    results = {}
    for part in options.parts:
        print(f"{time.strftime('%H:%M:%S')} {part}", flush=True)
        try:
            results[part] = measure(options, part)
            print(json.dumps({key: value for key, value in results[part].items() if key != "losses"}), flush=True)
        except Exception as error:
            print(f"{part} failed: {error}", flush=True)
    show(results)


if __name__ == "__main__":
    main()
