"""learning_backdoors/models/devices.py: which GPU a process uses."""

import os

import pytest

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import devices


@pytest.mark.parametrize(
    ("gpus", "visible", "local_rank", "expected"),
    [
        (2, None, None, "0"),
        (2, "2,3", None, "2"),
        (2, None, "1", "1"),
        (2, "4,6", "1", "6"),
        (1, "6", "1", "6"),  # the launcher has already assigned one
        (0, "", "1", ""),
    ],
)
def test_a_process_sees_only_its_own_gpu(monkeypatch, gpus, visible, local_rank, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value or "")  # so that monkeypatch restores it
        if value is None:
            monkeypatch.delenv(name)
    devices.keep_to_own_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="2 GPUs.*3"):
        devices.keep_to_own_gpu()
