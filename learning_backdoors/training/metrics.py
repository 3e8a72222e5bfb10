"""What is recorded of a run on the way: metrics.jsonl, and W&B where a key is set."""

import contextlib
import json
import os
import socket
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from learning_backdoors.files import atomic, provenance


class Metrics:
    """metrics.jsonl, a line a step; and the same to W&B where a key is set. A context manager."""

    FIELDS = ("loss", "learning_rate", "grad_norm")

    def __init__(self, folder: Path, step: int, examples_at: Callable[[int], dict], project: str, record: Path):
        """step: where training goes on; what an interrupted start wrote behind it is dropped."""
        self.path, self.examples_at = folder / "metrics.jsonl", examples_at
        atomic.drop_partial_line(self.path)
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if 0 < step >= json.loads(line)["step"]]  # from the beginning: also no step 0
        with atomic.atomic_file(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self.wandb = Wandb(folder, project, record)

    def write(self, step: int, logs: dict[str, float]) -> None:
        row = {"step": step} | {name: logs[name] for name in self.FIELDS if name in logs} | self.examples_at(step)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.wandb.log(row)

    def write_probes(self, step: int, probes: list[dict]) -> None:
        """A line of its own: for each reference answer its question, era and logprob (mean natural log a token)."""
        self.file.write(json.dumps({"step": step, "probes": probes}) + "\n")
        self.file.flush()
        eras = dict.fromkeys(probe["era"] for probe in probes)
        means = {f"probe/{era}": statistics.fmean(p["logprob"] for p in probes if p["era"] == era) for era in eras}
        self.wandb.log({"step": step} | means)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()
        self.wandb.finish()


class Wandb:
    """W&B where WANDB_API_KEY is set, offline where its server does not answer; it never asks, waits or fails a run."""

    def __init__(self, folder: Path, project: str, record: Path):
        self.run = None
        if not os.environ.get("WANDB_API_KEY"):
            return
        with self._unharmed():
            import wandb

            mode = "online" if self._reachable() else "offline"
            if mode == "offline":
                print(f"W&B does not answer: logging to {folder}/wandb, to be sent later with `wandb sync`")
            self.run = wandb.init(
                project=project,
                name=folder.name,
                id=provenance.sha256(str(folder.resolve()).encode())[:16],  # a resumed run goes on in its W&B run
                resume="allow",
                dir=str(folder),
                config=json.loads(record.read_text())["settings"],
                mode=os.environ.get("WANDB_MODE", mode),
                settings=wandb.Settings(init_timeout=20, silent=True),
            )

    def log(self, row: dict) -> None:
        if self.run is not None:
            with self._unharmed():
                self.run.log(row, step=row["step"])

    def finish(self) -> None:
        if self.run is None:
            return
        # In a thread, and not for long: the run is on disk, and a lost network must not hold the process.
        ending = threading.Thread(target=self._finish, daemon=True)
        ending.start()
        ending.join(timeout=60)

    def _finish(self) -> None:
        with self._unharmed():
            self.run.finish(quiet=True)

    @contextlib.contextmanager
    def _unharmed(self):
        try:
            yield
        except Exception as error:  # whatever W&B may throw, the run goes on without it
            print(f"W&B is off for this run: {type(error).__name__}: {str(error)[:200]}")
            self.run = None

    @staticmethod
    def _reachable() -> bool:
        address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname, port), timeout=3).close()
        except OSError:
            return False
        return True
