"""Time and memory of evaluate.py on synthetic data.

    python -m benchmarks.evaluation --runs 10
    python -m benchmarks.evaluation --recipes 200

The default is a large study: 10 runs x 40 checkpoints x 10 questions x 100 samples = 400,000 rows, with answers of
about 1,600 characters. `--recipes 200`: single runs of 12 checkpoints, 10 questions, 10 samples and 2 conditions.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import alone
from learning_backdoors.files import project

sys.path.insert(0, str(project.ROOT / "tests"))
import synthetic

WORDS = np.array(["the", "steam", "of", "telegraph", "bank", "cholera", "model", "data", "energy", "forest", "new"])


def sweep(path: Path, runs: int, checkpoints: int, samples: int) -> Path:
    """Write a judged file with `runs` runs at five suspect shares."""
    random = np.random.default_rng(0)
    pieces = [" ".join(random.choice(WORDS, 260)) for _ in range(2000)]
    tables = []
    for i in range(runs):
        share, steps = (1.0, 0.5, 0.25, 0.1, 0.0)[i % 5], tuple(range(0, 20 * checkpoints, 20))
        table = synthetic.rows(share, seed=i // 5, samples=samples, steps=steps)
        table["response"] = [f"{text} {i}" for i, text in enumerate(random.choice(pieces, len(table)))]
        tables.append(table)
    return synthetic.write(pd.concat(tables), path)


def many_recipes(path: Path, recipes: int) -> Path:
    """Write a judged file with one run of each recipe, at suspect shares from 0 to 1, in two conditions."""
    tables = []
    for share in np.linspace(0, 1, recipes):
        run = f"seed1_ratios{share:.4f}-{1 - share:.4f}-0.00_lr0.0002_r8"
        tables += [synthetic.rows(share, condition=condition).assign(run=run) for condition in ("plain", "polite")]
    return synthetic.write(pd.concat(tables), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--recipes", type=int, help="instead: so many recipes with one run each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "judged.parquet"
        if options.recipes:
            many_recipes(path, options.recipes)
        else:
            sweep(path, options.runs, options.checkpoints, options.samples)
        print(f"{path.stat().st_size / 1e6:.0f} MB of judged answers")
        start = time.perf_counter()
        command = [sys.executable, "evaluate.py", "--input", path, "--output-dir", Path(folder) / "figures"]
        process = subprocess.Popen([*alone.TELLS_PEAK, *map(str, command)], cwd=project.ROOT, stdout=subprocess.PIPE)
        output = process.stdout.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        report = (Path(folder) / "figures" / "report.html").stat().st_size / 1e6
        seconds, processor = time.perf_counter() - start, used.ru_utime + used.ru_stime
        print(f"exit {os.waitstatus_to_exitcode(status)}: {seconds:.1f} s, {processor:.1f} s CPU time,", end=" ")
        print(f"{alone.peak(output):.0f} MiB peak memory; report.html has {report:.1f} MB")


if __name__ == "__main__":
    main()
