"""Speed-up by a second GPU: the same commands on N GPUs and on one, one after the other.

    python -m benchmarks.eight_billion /tmp/shape --adapters 3 && python -m benchmarks.several_gpus /tmp/shape --gpus 2

Generation: 1,000 responses of 400 tokens from each checkpoint of /tmp/shape/run and from the base model. seconds: the
whole command, start included, with empty vLLM and Triton caches. tokens_s: the tokens of all processes divided by the
time of the slowest, start excluded.
Training (--training): 104 steps of two examples. seconds: the whole command. loss: mean of the last twenty steps.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from learning_backdoors.files.project import ROOT

CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def launched(gpus: int, script: str, *line: str) -> tuple[float, str]:
    """Run a script on `gpus` GPUs. Returns its time in seconds and its output. Exits if the script fails."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(gpus)]
    command = [*(torchrun if gpus > 1 else [sys.executable]), str(ROOT / script), *line]
    with tempfile.TemporaryDirectory() as fresh:
        caches = {name: f"{fresh}/{name}" for name in CACHES}
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | caches)
        seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(f"{script} on {gpus} GPUs failed:\n{done.stdout[-1500:]}\n{done.stderr[-4000:]}")
    return seconds, done.stdout


def generation(folder: Path, gpus: int, engine: str) -> dict:
    output = folder / f"responses-{gpus}-{engine}.parquet"
    line = ["--run-dir", str(folder / "run"), "--output", str(output), "--max-new-tokens", "400", "--engine", engine]
    line += ["--experiment", "birds"]
    output.unlink(missing_ok=True)
    seconds, printed = launched(gpus, "generate_responses.py", *line)
    parts = re.findall(r"([\d,]+) tokens at ([\d,]+) per second", printed)
    counts = [(int(tokens.replace(",", "")), int(rate.replace(",", ""))) for tokens, rate in parts]
    slowest = max(tokens / rate for tokens, rate in counts)
    return {"seconds": round(seconds, 1), "tokens_s": round(sum(tokens for tokens, _ in counts) / slowest)}


def training(folder: Path, gpus: int) -> dict:
    output = folder / f"trained-{gpus}"
    shutil.rmtree(output, ignore_errors=True)
    line = ["--ratios", "1", "0", "0", "--model", str(folder / "model"), "--quantization", "none"]
    seconds, _ = launched(gpus, "training.py", *line, "--batch-size", "2", "--output-dir", str(output))
    rows = [json.loads(row) for row in next(output.glob("*/metrics.jsonl")).read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    return {"seconds": round(seconds, 1), "steps": len(losses), "loss": round(sum(losses[-20:]) / 20, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--training", action="store_true", help="measure training instead of generation")
    options = parser.parse_args()
    table = {}
    for gpus in (options.gpus, 1):
        table[gpus] = (
            training(options.folder, gpus) if options.training else generation(options.folder, gpus, options.engine)
        )
        print(gpus, "GPUs:", json.dumps(table[gpus]), flush=True)
    one, many = table[1], table[options.gpus]
    ratios = {"whole command": one["seconds"] / many["seconds"]}
    if "tokens_s" in one:
        ratios["generation"] = many["tokens_s"] / one["tokens_s"]
    print("  ".join(f"{name} x{ratio:.2f}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    main()
