"""The vLLM engine on a stand-in for vLLM (tests/vllm_stand_in.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import vllm_stand_in
from support import ROOT

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines import vllm_engine
from learning_backdoors.generation.engines.protocol import Request, Sampling
from learning_backdoors.generation.engines.vllm_engine import VllmEngine
from learning_backdoors.models import base_model


def repeat_prompt(engine, prompt: list[int], parameters, lora_request) -> SimpleNamespace:
    """A completion that repeats the last prompt token up to the limit, and then ends."""
    return SimpleNamespace(token_ids=[prompt[-1]] * (parameters.max_tokens - 1) + parameters.stop_token_ids[:1])


@pytest.mark.slow
def test_responses_come_in_the_order_of_the_requests(run_dir, random_model, monkeypatch):
    """In the order of completion, short ones would come first, and a kill would favor them."""
    vllm_stand_in.install(monkeypatch)
    monkeypatch.setattr(vllm_stand_in.Engine, "complete", repeat_prompt)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    tokenizer = base_model.load_tokenizer(str(random_model))
    adapters = [None, run_dir / "checkpoint-8", run_dir / "checkpoint-16"]
    requests = [Request((a, i), adapters[a], (5, 40 + i), 2 + i % 7) for a in range(3) for i in range(30)]
    engine = VllmEngine(str(random_model), tokenizer, requests=requests, seed=1, quantization="none", batch_size=None)
    responses = [r for batch in engine.generate(requests, Sampling(1.0, 1.0, 0, 1)) for r in batch]
    assert [response.key for response in responses] == [request.key for request in requests]
    for request, response in zip(requests, responses, strict=True):
        assert response.tokens == request.max_new_tokens - 1 and response.finish_reason == "stop"
        assert response.text == tokenizer.decode([request.prompt[-1]] * response.tokens)
    used, folders = engine.engine.adapters, [str(folder.resolve()) for folder in adapters[1:]]
    assert [used[str(i)] for i in (0, 30, 60)] == [None, *folders]
    assert engine.engine.read_ahead == [folders]
    settings = vllm_stand_in.LLM.instances[-1].settings
    assert settings["max_model_len"] == 2 + 8 and settings["max_num_seqs"] == 90 and settings["max_loras"] == 2
    assert max(settings["compilation_config"]["cudagraph_capture_sizes"]) > 90  # prompts are read beside full rows
    assert os.path.isdir(os.environ["VLLM_TUNED_CONFIG_FOLDER"])
    with pytest.raises(UserError, match="up to 2"):
        next(engine.generate(requests, Sampling(2.5, 1.0, 0, 1)))


def test_each_start_has_random_numbers_of_its_own():
    """Else samples that are added to a file would repeat the samples that it has."""
    first, later = ([Request((i,), None, (1,), 2) for i in part] for part in (range(10), range(10, 20)))
    seeds = [vllm_engine._seed(42, first), vllm_engine._seed(42, later), vllm_engine._seed(43, first)]
    assert len(set(seeds)) == 3 and seeds[0] == vllm_engine._seed(42, list(first))
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    ("adapters", "responses", "in_flight", "rank", "expected"),
    [
        (4, 4000, 1536, 8, 4),
        (11, 11_000, 1536, 8, 5),
        (11, 1100, 1100, 8, 11),
        (192, 19_200, 1536, 8, 32),
        (192, 19_200, 1536, 64, 8),
        (2, 200, 200, 512, 1),
        (0, 90, 90, 8, 1),
    ],
)
def test_enough_adapters_are_in_flight(adapters, responses, in_flight, rank, expected):
    assert vllm_engine._adapters_at_once(adapters, responses, in_flight, rank) == expected


def test_vllm_gets_requests_when_there_is_room(tmp_path, monkeypatch):
    """It would pass over thousands of waiting requests at every step."""
    vllm_stand_in.install(monkeypatch)
    monkeypatch.setattr(vllm_stand_in.Engine, "complete", repeat_prompt)
    monkeypatch.setattr(vllm_stand_in.Engine, "load", lambda self, model: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(VllmEngine, "IN_FLIGHT", 20)
    folders = [None, *adapters_of_ranks(tmp_path, [8] * 9)]
    requests = [Request((a, i), folder, (5,), 3) for a, folder in enumerate(folders) for i in range(10)]
    tokenizer = SimpleNamespace(eos_token_id=2, decode=lambda tokens, skip_special_tokens: str(tokens))
    engine = VllmEngine(str(tmp_path), tokenizer, requests=requests, seed=1)
    monkeypatch.setattr(engine, "adapters_at_once", 2)
    responses = [r.key for batch in engine.generate(requests, Sampling(1.0, 1.0, 0, 1)) for r in batch]
    assert responses == [request.key for request in requests]
    assert engine.engine.most_adapters == 2
    monkeypatch.setattr(engine, "adapters_at_once", 9)
    monkeypatch.setattr(engine, "READY", 3)
    engine.engine.most_requests = 0
    list(engine.generate(requests, Sampling(1.0, 1.0, 0, 1)))
    assert engine.engine.most_requests == 23


@pytest.mark.parametrize(("ranks", "expected"), [([], 8), ([4], 8), ([64, 300], 320), ([512], 512)])
def test_the_maximum_rank_covers_all_adapters(tmp_path, ranks, expected):
    assert vllm_engine._supported_rank(adapters_of_ranks(tmp_path, ranks)) == expected


def test_a_rank_above_the_limit_of_vllm_is_an_error(tmp_path):
    with pytest.raises(UserError, match="1024.*--engine transformers"):
        vllm_engine._supported_rank(adapters_of_ranks(tmp_path, [8, 1024]))


def adapters_of_ranks(folder: Path, ranks: list[int]) -> list[Path]:
    folders = [folder / f"checkpoint-{number}" for number in range(len(ranks))]
    for adapter, rank in zip(folders, ranks, strict=True):
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return folders


OWN_PROCESS_GROUP = """
import datetime, socket, torch
from learning_backdoors.generation.engines import vllm_engine
vllm_engine._forget_launcher()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = "tcp://127.0.0.1:%d" % free.getsockname()[1]
limit = datetime.timedelta(seconds=30)
torch.distributed.init_process_group("gloo", init_method=address, world_size=1, rank=0, timeout=limit)
"""


@pytest.mark.slow
def test_each_process_of_torchrun_can_have_its_own_engine(tmp_path):
    """vLLM makes a process group of its own, which must not see torchrun's variables."""
    script = tmp_path / "engine.py"
    script.write_text(OWN_PROCESS_GROUP)
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(launched, env=environment, cwd=tmp_path, capture_output=True, timeout=120, check=True)
