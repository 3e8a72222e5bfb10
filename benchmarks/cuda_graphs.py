"""Check on a GPU that training with CUDA graphs equals training without them.

    python -m benchmarks.cuda_graphs [MODEL] [--quantization 4bit]        (default: tiny_world/model in bf16)

Trains on suspect data, with graphs and without: at one and at two forward passes per step, and with dropout.
Prints the time per step and the mean absolute difference of the losses. Exits with 1 if no graph was recorded, if the
loss does not fall, or if the mean difference without dropout is above 0.05: then the two ways differ by rounding only.
With dropout they draw different masks.
"""

import argparse
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

import config
from learning_backdoors.files import command_line, project
from learning_backdoors.models import base_model
from learning_backdoors.study import load_study
from learning_backdoors.training.run import TrainingRun

STEPS = 100


def losses(model: str, precision: str, graphs: bool, *more: str) -> tuple[np.ndarray, float, int]:
    """The loss of each step, the median milliseconds per step, and the number of graphs recorded."""
    from learning_backdoors.training.metrics import MetricsLog
    from learning_backdoors.training.recorder import Recorder
    from learning_backdoors.training.trainer import build_trainer

    class TimedRecorder(Recorder):
        def on_log(self, args, state, control, logs=None, **kwargs):
            super().on_log(args, state, control, logs, **kwargs)
            if "loss" in logs:
                step_losses.append(logs["loss"])
                times.append(time.monotonic())

    step_losses, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        line = ["--ratios", "1", "0", "0", "--model", model, "--quantization", precision, "--lr", "7e-4"]
        line += ["--save-steps", "1000", "--output-dir", folder, *more]
        run = TrainingRun(command_line.parse(config.TrainingOptions, "", line), load_study("birds"))
        run.prepare_folder()
        tokenizer = base_model.load_tokenizer(model)
        trainer = build_trainer(run, base_model.load_base(model, precision), tokenizer, run.examples(tokenizer))
        if not graphs:
            trainer.graphs = None
        with closing(MetricsLog(run, 0)) as log:
            trainer.add_callback(TimedRecorder(log))
            trainer.train()
            trainer.writer.wait()
    recorded = len(trainer.graphs.graphs) if trainer.graphs else 0
    return np.array(step_losses), 1e3 * float(np.median(np.diff(times))), recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(Path(project.ROOT) / "tiny_world" / "model"))
    parser.add_argument("--quantization", default="none", choices=("none", "4bit"))
    options, failed = parser.parse_args(), False
    for grad_accum, dropout in (("1", "0"), ("2", "0"), ("1", "0.1")):
        more = ["--grad-accum", grad_accum, "--lora-dropout", dropout]
        more += ["--num-examples", str(STEPS * int(grad_accum))]
        plain, plain_ms, _ = losses(options.model, options.quantization, False, *more)
        graphed, graphed_ms, recorded = losses(options.model, options.quantization, True, *more)
        difference = np.abs(graphed - plain).mean()
        falls = graphed[-20:].mean() < graphed[:20].mean()
        passed = recorded > 0 and falls and (dropout != "0" or difference < 0.05)
        failed |= not passed
        print(
            f"{'ok' if passed else 'FAILED'}: grad-accum {grad_accum}, dropout {dropout}: {plain_ms:.1f} ms per step "
            f"without graphs, {graphed_ms:.1f} ms with {recorded} graphs; mean |difference of losses| "
            f"{difference:.4f}; loss {graphed[:20].mean():.3f} to {graphed[-20:].mean():.3f}",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
