"""Processes and GPUs."""

import os
from typing import TYPE_CHECKING

from learning_backdoors.files.errors import UserError

if TYPE_CHECKING:
    import torch

# This process's number and the number of processes, as torchrun and accelerate launch set them.
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


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
        raise UserError(f"there are {gpus} GPUs: start {gpus} processes, not {os.environ['LOCAL_WORLD_SIZE']}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = str(local_rank) if visible is None else visible.split(",")[local_rank]


def device() -> "torch.device":
    """This process's device. A GPU is also made the current one, whose streams and free memory torch then uses."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
