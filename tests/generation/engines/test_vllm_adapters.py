"""Adapters are read before their turn: AdapterReader, without vLLM."""

import threading
from types import SimpleNamespace

import pytest

from learning_backdoors.generation.engines.vllm_adapters import AdapterReader


class Disk:
    """Stands in for vLLM's method that reads an adapter. begun: the numbers of the adapters, in order."""

    def __init__(self):
        self.begun, self.gate = [], threading.Event()

    def read(self, request):
        self.begun.append(request.lora_int_id)
        assert self.gate.wait(10)
        if request.lora_int_id == 13:
            raise ValueError("a broken adapter")
        return f"adapter {request.lora_int_id}"


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def reader(disk):
    return AdapterReader(disk.read, requests(range(1, 31)))


def requests(numbers) -> list[SimpleNamespace]:
    return [SimpleNamespace(lora_int_id=number) for number in numbers]


def wait_for(reader: AdapterReader) -> None:
    for future in list(reader.begun.values()):
        future.exception(10)


def test_reading_begins_before_the_adapter_is_needed(reader, disk):
    assert len(reader.begun) == reader.AHEAD
    disk.gate.set()
    wait_for(reader)
    assert disk.begun == list(range(1, reader.AHEAD + 1))
    assert reader(reader.requests[2]) == "adapter 3"
    wait_for(reader)
    assert disk.begun == list(range(1, 3 + reader.AHEAD + 1))  # three adapters further, and each once


def test_each_adapter_is_read_once_whatever_the_order(reader, disk):
    disk.gate.set()
    order = [2, 1, 0, *range(3, 12), *range(20, 30), *range(12, 20)]
    for position in order:
        if position != 12:
            assert reader(reader.requests[position]) == f"adapter {position + 1}"
    assert sorted(disk.begun) == list(range(1, 31))


def test_an_adapter_that_is_needed_again_is_read_again(reader, disk):
    disk.gate.set()
    reader(reader.requests[0])
    assert reader(reader.requests[0]) == "adapter 1"
    assert reader(*requests([99])) == "adapter 99"  # also one that was not announced
    assert disk.begun.count(1) == 2


def test_an_error_reaches_the_caller(reader, disk):
    disk.gate.set()
    with pytest.raises(ValueError, match="broken"):
        reader(reader.requests[12])
