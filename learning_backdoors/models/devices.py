"""Processes, GPUs and CPU threads."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line

if TYPE_CHECKING:
    import torch

# This process's number and the number of processes, as torchrun and accelerate launch set them.
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

# Threads that wait for each other must not keep a busy CPU from the thread they wait for. torch reads this when it is
# first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Parameters below which a model runs in one CPU thread: several would mostly wait.
ONE_THREAD_BELOW = 20e6


def limit_threads(parameters: int) -> None:
    """Let a model of so many parameters run in one thread if it is small, else in as many as torch chooses.

    The choice does not depend on the load, because the last bits of sums depend on the number of threads: the same
    command must give the same bytes. OMP_NUM_THREADS and MKL_NUM_THREADS win.
    """
    import torch

    chosen_by_user = os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS")
    if parameters < ONE_THREAD_BELOW and not chosen_by_user:
        torch.set_num_threads(1)


def keep_to_own_gpu() -> None:
    """Hide all GPUs but one: the one of this process's local rank, or the first without a launcher.

    Call it before CUDA starts: CUDA reads the visible devices once, and torch.cuda.is_available() starts it.
    Raises UserError if a launcher started more processes than there are GPUs.
    """
    import torch

    gpus, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))  # does not start CUDA
    if gpus < 2:  # none, or the launcher has already assigned one
        return
    if local_rank >= gpus:
        processes = os.environ.get("LOCAL_WORLD_SIZE", "more")  # not every launcher sets it
        raise UserError(f"there are {gpus} GPUs: start {gpus} processes, not {processes}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(local_rank) if visible is None else visible.split(",")[local_rank]


@contextmanager
def end_after_others() -> Iterator[None]:
    """Under torchrun, let a process that fails wait for the end of the others. The error is printed at once.

    torchrun stops all processes when one of them fails, but those that train different runs do not need each other.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield
        return
    from torch import distributed

    store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    failure = None
    try:
        yield
    except Exception as error:
        print(f"process {RANK} stops, and waits for the others to end: {one_line(error)}", file=sys.stderr, flush=True)
        failure = error
    with contextlib.suppress(RuntimeError):  # the host of the store has ended
        store.add("processes_ended", 1)
        while failure and store.add("processes_ended", 0) < RANKS:
            time.sleep(1)
    if failure:
        time.sleep(3)  # the last of the others is still exiting
        raise failure


def device() -> "torch.device":
    """This process's device. A GPU is also made the current one, whose streams and free memory torch then uses."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
