"""Logging to Weights & Biases. It never prompts, never waits long and never fails a run."""

import contextlib
import functools
import os
import socket
import threading
from urllib.parse import urlsplit

from learning_backdoors.files import provenance
from learning_backdoors.training.run import TrainingRun


class WandbLog:
    """A W&B run if WANDB_API_KEY is set: online if the server answers, offline otherwise."""

    failed = False  # a start of W&B failed in this process. A sweep must not wait 20 seconds for each of its runs
    starting = threading.Lock()  # runs on a server start in threads

    def __init__(self, run: TrainingRun):
        self.run = None
        with WandbLog.starting:
            if not WandbLog.failed and os.environ.get("WANDB_API_KEY"):
                self._start(run)

    def _start(self, run: TrainingRun) -> None:
        WandbLog.failed = True
        with self._errors_switch_it_off():
            import wandb

            self.run = wandb.init(
                project=run.options.wandb_project,
                name=run.folder.name,
                id=provenance.sha256(str(run.folder.resolve()).encode())[:16],  # a resumed run continues its W&B run
                resume="allow",
                dir=str(run.folder),
                config=run.settings,
                mode=_mode(),
                reinit="create_new",  # a sweep has many W&B runs in one process
                # run.json has the packages' versions, and to list them all takes W&B 0.1 s per run.
                settings=wandb.Settings(init_timeout=20, finish_timeout=60, silent=True, x_save_requirements=False),
            )
            WandbLog.failed = False

    def log(self, row: dict) -> None:
        if self.run is not None:
            with self._errors_switch_it_off():
                self.run.log(row, step=row["step"])

    def finish(self) -> None:
        """Send the rest in a thread, for at most a minute: a lost network must not hold the other runs of a sweep."""
        if self.run is not None:
            threading.Thread(target=self._finish).start()  # the process ends after its threads

    def _finish(self) -> None:
        with self._errors_switch_it_off():
            self.run.finish()

    @contextlib.contextmanager
    def _errors_switch_it_off(self):
        try:
            yield
        except Exception as error:  # any error of W&B: training continues without it
            print(f"W&B is off for this run: {type(error).__name__}: {str(error)[:200]}", flush=True)
            self.run = None


@functools.cache  # once per process: a server that does not answer takes 3 seconds
def _mode() -> str:
    mode = os.environ.get("WANDB_MODE") or ("online" if _server_answers() else "offline")
    if mode == "offline":
        print("W&B logs offline, to the folder wandb of the run directory: `wandb sync` sends it later", flush=True)
    return mode


def _server_answers() -> bool:
    address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=3).close()
    except OSError:
        return False
    return True
