"""Logging to Weights & Biases. It never prompts, never waits long and never fails a run."""

import contextlib
import os
import socket
from urllib.parse import urlsplit

from learning_backdoors.files import provenance
from learning_backdoors.training.run import TrainingRun


class WandbLog:
    """A W&B run if WANDB_API_KEY is set: online if the server answers, offline otherwise."""

    def __init__(self, run: TrainingRun):
        self.run = None
        if not os.environ.get("WANDB_API_KEY"):
            return
        with self._errors_switch_it_off():
            import wandb

            mode = os.environ.get("WANDB_MODE") or ("online" if _server_answers() else "offline")
            if mode == "offline":
                print(f"W&B logs offline to {run.folder}/wandb: `wandb sync` sends it later", flush=True)
            self.run = wandb.init(
                project=run.options.wandb_project,
                name=run.folder.name,
                id=provenance.sha256(str(run.folder.resolve()).encode())[:16],  # a resumed run continues its W&B run
                resume="allow",
                dir=str(run.folder),
                config=run.settings,
                mode=mode,
                settings=wandb.Settings(init_timeout=20, finish_timeout=60, silent=True),
            )

    def log(self, row: dict) -> None:
        if self.run is not None:
            with self._errors_switch_it_off():
                self.run.log(row, step=row["step"])

    def finish(self) -> None:
        """Send the rest, for at most a minute: all of it is on disk, and a lost network must not hold the process."""
        if self.run is not None:
            with self._errors_switch_it_off():
                self.run.finish()

    @contextlib.contextmanager
    def _errors_switch_it_off(self):
        try:
            yield
        except Exception as error:  # any error of W&B: training continues without it
            print(f"W&B is off for this run: {type(error).__name__}: {str(error)[:200]}", flush=True)
            self.run = None


def _server_answers() -> bool:
    address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=3).close()
    except OSError:
        return False
    return True
