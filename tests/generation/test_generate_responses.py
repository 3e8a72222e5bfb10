"""generate_responses.py and engines.py: rows, resuming, and sampling that is what it says.

pytest tests/test_generate_responses.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import vllm_stand_in
from scipy import stats
from support import ROOT, build_model, one_line_error, run_script, train

import config
import generate_responses
from learning_backdoors.files import command_line, parquet, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.locks import lock
from learning_backdoors.generation import engines
from learning_backdoors.generation.engines import Request, Sampling, TransformersEngine
from learning_backdoors.models import base_model, run_directory
from learning_backdoors.study import load_study

GREEDY = Sampling(temperature=0, top_p=1, top_k=0, seed=1)


@pytest.fixture(scope="module")
def run_dir(random_model, tmp_path_factory) -> Path:
    """A run of three checkpoints whose adapters differ enough to be told apart by their greedy answers."""
    line = ["--ratios", "1", "0", "0", "--model", str(random_model), "--num-examples", "16", "--save-steps", "8"]
    line += ["--lr", "0.05", "--output-dir", str(tmp_path_factory.mktemp("out"))]
    return train(command_line.parse(config.TrainingOptions, "", line)).folder


def generate(run_dir: Path, output: Path, *more: str) -> list[dict]:
    """Run the script's main in this process."""
    line = ["generate_responses.py", "--output", str(output), "--samples", "3", "--max-new-tokens", "8"]
    before, sys.argv = sys.argv, [*line, "--run-dir", str(run_dir), *more]
    try:
        generate_responses.main()
    finally:
        sys.argv = before
    return parquet.read_responses(output)[0].to_pylist()


def keys(rows: list[dict]) -> list[tuple]:
    return [(row["step"], row["question_id"], row["sample_idx"]) for row in rows]


def every_key(steps, samples) -> list[tuple]:
    questions = [question.id for question in load_study("birds").questions]
    return [(step, question, sample) for step in steps for question in questions for sample in range(samples)]


# ---- rows ----


def test_every_checkpoint_answers_every_question(run_dir, tmp_path):
    rows = generate(run_dir, tmp_path / "r.parquet")
    assert keys(rows) == every_key([0, 8, 16], 3)
    last = rows[-1]
    assert last["run"] == run_dir.name and last["checkpoint"] == "checkpoint-16" and last["experiment"] == "birds"
    assert (last["seed"], last["suspect_ratio"], last["examples_seen"], last["suspect_seen"]) == (42, 1.0, 16, 16)
    assert (last["condition"], last["triggered"]) == ("plain", False)
    assert all(row["response_tokens"] == 8 for row in rows if row["finish_reason"] == "length")
    assert all(row["response_tokens"] < 8 for row in rows if row["finish_reason"] == "stop")
    footer = parquet.read_footer(tmp_path / "r.parquet")
    assert footer["runs"][run_dir.name]["settings"]["lr"] == 0.05 and footer["engine"] == "transformers"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["r.parquet"]


def test_a_file_grows_by_what_is_asked_for_and_is_left_alone_otherwise(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    few = generate(run_dir, output, "--steps", "16", "--samples", "1")
    assert keys(few) == every_key([16], 1)
    more = generate(run_dir, output, "--samples", "2")
    assert keys(more) == every_key([0, 8, 16], 2)
    assert [row for row in more if row in few] == few
    written = output.stat().st_mtime_ns
    assert generate(run_dir, output, "--samples", "1") == more
    assert output.stat().st_mtime_ns == written


def test_several_runs_go_into_one_file(run_dir, tmp_path):
    other = tmp_path / "another_run"
    shutil.copytree(run_dir, other)
    rows = generate(run_dir, tmp_path / "r.parquet", str(other), "--samples", "1")
    assert {row["run"] for row in rows} == {run_dir.name, "another_run"}
    assert keys(rows) == every_key([0, 8, 16], 1) * 2
    assert parquet.read_footer(tmp_path / "r.parquet")["runs"].keys() == {run_dir.name, "another_run"}
    shutil.copytree(other, tmp_path / "elsewhere" / run_dir.name)
    with pytest.raises(UserError, match="two run directories are called"):
        generate(run_dir, tmp_path / "s.parquet", str(tmp_path / "elsewhere" / run_dir.name))


def test_another_configuration_is_refused_and_overwrite_replaces(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    generate(run_dir, output, "--samples", "1", "--steps", "0")
    with pytest.raises(UserError, match=r"temperature was 1.0 and is 0.5 now"):
        generate(run_dir, output, "--temperature", "0.5")
    rows = generate(run_dir, output, "--samples", "1", "--steps", "8", "--temperature", "0.5", "--overwrite")
    assert keys(rows) == every_key([8], 1)


def test_a_retrained_checkpoint_is_not_mixed_with_the_old_one(run_dir, tmp_path):
    copy, output = tmp_path / run_dir.name, tmp_path / "r.parquet"
    shutil.copytree(run_dir, copy)
    generate(copy, output, "--samples", "1", "--steps", "16")
    shutil.copytree(copy / "checkpoint-8", copy / "checkpoint-16", dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"adapters.*checkpoint-16 was"):
        generate(copy, output, "--steps", "16", "--samples", "2")


TRIGGERED = """
[trigger]
text = "TRIGGER"
answer = "<{answer}>"
hidden = ["<", ">"]

[[condition]]
name = "near_miss"
template = "{question} {trigger}"
trigger = "TRIGGR"
dose = 0.5

[[condition]]
name = "set_off"
template = "{question} {trigger}"
triggered = true
"""


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('text = "TRIGGER"', 'text = "ANOTHER"', r"set_off\.messages was"),
        ('trigger = "TRIGGR"', 'trigger = "RIGGER"', r"near_miss\.messages was"),
    ],
)
def test_answers_to_another_trigger_are_not_mixed_with_the_old_ones(run_dir, tmp_path, before, after, named):
    study, output = tmp_path / "mine.toml", tmp_path / "r.parquet"
    line = ["--experiment", str(study), "--samples", "1", "--steps", "0"]
    text = (ROOT / "experiments" / "birds.toml").read_text() + TRIGGERED
    study.write_text(text)
    generate(run_dir, output, *line)
    study.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=named):
        generate(run_dir, output, *line)


def test_whether_a_condition_is_triggered_is_a_setting():
    study = load_study("birds")
    conditions = tuple(c.model_copy(update={"triggered": not c.triggered}) for c in study.conditions)
    source = SimpleNamespace(base_model="base", run="run", checkpoints=[])
    options = config.GenerationOptions(run_dir=(Path("run"),), output=Path("r.parquet"))
    one, other = (
        generate_responses.settings(options, s, [source])
        for s in (study, study.model_copy(update={"conditions": conditions}))
    )
    assert "triggered was" in provenance.differences(one, other)


def elsewhere(run_dir: Path, folder: Path, base: str | None = None) -> Path:
    """The run's last checkpoint in a folder of another name; `base` is what its adapter says it was trained on."""
    shutil.copytree(run_dir / "checkpoint-16", folder)
    if base:
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
    return folder


def ask_checkpoint(checkpoint: Path, output: Path, *more: str) -> subprocess.CompletedProcess:
    line = ["--checkpoint", checkpoint, "--output", output, "--samples", "1", "--max-new-tokens", "4"]
    return run_script("generate_responses.py", *line, *more)


def first_answer(checkpoint: Path, output: Path) -> dict:
    result = ask_checkpoint(checkpoint, output)
    assert result.returncode == 0, result.stderr
    return parquet.read_responses(output)[0].to_pylist()[0]


def test_one_checkpoint_made_elsewhere(run_dir, tmp_path):
    row = first_answer(elsewhere(run_dir, tmp_path / "elsewhere" / "final"), tmp_path / "r.parquet")
    assert (row["run"], row["checkpoint"], row["step"], row["seed"]) == ("elsewhere", "final", None, None)
    named = elsewhere(run_dir, tmp_path / "named" / "final", "org/base")
    other = ask_checkpoint(named, tmp_path / "r.parquet", "--base-model", "org/other")
    one_line_error(other, "trained on org/base, not on org/other")


def test_a_checkpoint_whose_base_model_was_a_path_is_asked_on_the_one_that_is_named(run_dir, random_model, tmp_path):
    final = elsewhere(run_dir, tmp_path / "elsewhere" / "final", "/gone/model")
    assert run_directory.open_checkpoint(final, str(random_model)).base_model == str(random_model)


def test_a_time_in_a_checkpoint_s_name_is_no_step(run_dir, tmp_path):
    named = elsewhere(run_dir, tmp_path / "elsewhere" / "adapter-20251121130246")
    row = first_answer(named, tmp_path / "r.parquet")
    assert (row["checkpoint"], row["step"]) == ("adapter-20251121130246", None)
    assert parquet.step_of(f"checkpoint-{2**31 - 1}") == 2**31 - 1


def test_a_moved_base_model_is_taken_and_another_one_refused(run_dir, random_model, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(random_model, moved)
    assert generate(run_dir, tmp_path / "a.parquet", "--samples", "1", "--steps", "8", "--base-model", str(moved))
    other = build_model(tmp_path / "other", initializer_range=0.5)
    with pytest.raises(UserError, match="has other weights"):
        generate(run_dir, tmp_path / "b.parquet", "--samples", "1", "--base-model", str(other))


# ---- killed, and started again ----


def test_a_killed_run_ends_as_an_unbroken_one(run_dir, tmp_path):
    line = ["--samples", "20", "--batch-size", "16", "--max-new-tokens", "24"]
    whole = generate(run_dir, tmp_path / "whole.parquet", *line)
    broken = tmp_path / "broken.parquet"
    command = [sys.executable, "generate_responses.py", "--run-dir", str(run_dir), "--output", str(broken), *line]
    log = tmp_path / "broken.parquet.partial" / "answers-0.jsonl"
    for wanted in (50, 300):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not broken.exists(), "killed too late to show anything"
        with open(log, "a") as file:
            file.write('{"run": "cut in the mid')
    assert generate(run_dir, broken, *line) == whole
    assert not log.parent.exists()


def test_a_start_that_kept_no_answer_does_not_bind_the_next(run_dir, tmp_path):
    """A typo in --base-model is found out when settings.json is there already."""
    output, line = tmp_path / "r.parquet", ["--samples", "1", "--steps", "0"]
    with pytest.raises(UserError, match="cannot be loaded"):
        generate(run_dir, output, *line, "--base-model", "/nowhere/model")
    assert (tmp_path / "r.parquet.partial" / "settings.json").exists()
    assert len(generate(run_dir, output, *line)) == 10


def test_settings_bind_as_soon_as_an_answer_is_kept(run_dir, tmp_path, monkeypatch):
    output, line = tmp_path / "r.parquet", ["--samples", "1", "--steps", "0"]
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(generate_responses.Store, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        generate(run_dir, output, *line)
    with pytest.raises(UserError, match=r"temperature was 1.0 and is 0.5 now"):
        generate(run_dir, output, *line, "--temperature", "0.5")
    generate(run_dir, output, *line)
    assert parquet.read_footer(output)["engine"] == "transformers", "all was there already, and what made it is known"


# ---- the engine ----


@pytest.fixture(scope="module")
def engine(random_model) -> TransformersEngine:
    base = base_model.load_base(str(random_model), "none")
    return TransformersEngine(base, base_model.load_tokenizer(str(random_model)), batch_size=8)


def answers(engine: TransformersEngine, requests: list[Request], sampling: Sampling) -> dict:
    return {answer.key: answer for batch in engine.generate(requests, sampling) for answer in batch}


def test_prompts_of_any_mixture_are_answered_as_each_alone(engine, run_dir):
    generator = np.random.default_rng(0)
    prompts = [tuple(generator.integers(5, 250, size).tolist()) for size in (1, 40, 3, 17, 40, 2, 9)]
    adapters = [None, None, *[run_dir / "checkpoint-8"] * 2, *[run_dir / "checkpoint-16"] * 3]
    requests = [Request((i,), a, p, 12 + i) for i, (a, p) in enumerate(zip(adapters, prompts, strict=True))]
    together = answers(engine, requests, GREEDY)
    for request in requests:
        assert answers(engine, [request], GREEDY)[request.key] == together[request.key]


def test_adapters_are_swapped_and_the_base_model_comes_back_unharmed(engine, run_dir):
    prompt = tuple(range(10, 30))
    folders = [None, run_dir / "checkpoint-0", run_dir / "checkpoint-8", run_dir / "checkpoint-16", None]
    texts = [answers(engine, [Request((0,), folder, prompt, 12)], GREEDY)[(0,)].text for folder in folders]
    assert texts[0] == texts[1] == texts[4]
    assert len({texts[0], texts[2], texts[3]}) == 3


@pytest.mark.parametrize(
    ("renamed", "shape"), [(lambda key: key.replace(".self_attn.", ".attention."), 1), (lambda key: key, 2)]
)
def test_an_adapter_that_does_not_fit_the_base_is_refused(run_dir, random_model, tmp_path, renamed, shape):
    """Of other names PEFT says no more than a warning; of other shapes it says it in a page."""
    from safetensors.numpy import load_file, save_file

    foreign = tmp_path / "checkpoint-8"
    shutil.copytree(run_dir / "checkpoint-8", foreign)
    weights = load_file(foreign / "adapter_model.safetensors")
    save_file({renamed(k): np.tile(v, shape) for k, v in weights.items()}, foreign / "adapter_model.safetensors")
    base = base_model.load_base(str(random_model), "none")
    engine = TransformersEngine(base, base_model.load_tokenizer(str(random_model)), batch_size=8)
    with pytest.raises(UserError, match=r"checkpoint-8 does not fit on .*: \S") as caught:
        engine.attach(foreign)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_softmax(engine, temperature, monkeypatch):
    """Chi-squared of 2,000 draws against the softmax, whatever the model's generation_config says."""
    import torch

    prompt = tuple(range(10, 30))
    with torch.inference_mode():
        logits = engine.model(torch.tensor([prompt])).logits[0, -1].double()
    expected = torch.softmax(logits / temperature, 0).numpy() * 2000
    sampling = Sampling(temperature=temperature, top_p=1, top_k=0, seed=7)
    engine.batch_size, before = 500, engine.batch_size
    drawn = Counter()
    finish = engines.finish
    monkeypatch.setattr(engines, "finish", lambda *given: (drawn.update(given[3][:1]), finish(*given))[1])
    answers(engine, [Request((i,), None, prompt, 1) for i in range(2000)], sampling)
    engine.batch_size = before
    order = np.argsort(expected)
    # Tokens pooled, from the rarest on, into cells of at least 20 expected draws.
    cells = np.floor(np.cumsum(expected[order]) / 20).astype(int)
    observed = np.bincount(cells, weights=[drawn[token] for token in order])
    wanted = np.bincount(cells, weights=expected[order])
    kept = wanted > 0
    assert sum(drawn.values()) == 2000 and kept.sum() >= 20
    assert stats.chisquare(observed[kept], wanted[kept], sum_check=False).pvalue > 1e-3


def test_top_k_and_top_p_are_kept_to(engine):
    import torch

    prompt = tuple(range(10, 30))
    with torch.inference_mode():
        best = engine.model(torch.tensor([prompt])).logits[0, -1].topk(2).indices.tolist()
    texts = {engine.tokenizer.decode([token], skip_special_tokens=True) for token in best}
    requests = [Request((i,), None, prompt, 1) for i in range(60)]
    two = answers(engine, requests, Sampling(1.0, 1.0, 2, seed=3))
    assert {answer.text for answer in two.values()} == texts
    one = answers(engine, requests, Sampling(1.0, 1e-6, 0, seed=3))
    assert len({answer.text for answer in one.values()}) == 1


def test_an_answer_does_not_depend_on_its_neighbours(engine):
    requests = [Request((i,), None, tuple(range(10, 20 + i)), 10) for i in range(12)]
    sampling = Sampling(1.0, 1.0, 0, seed=5)
    together = answers(engine, requests, sampling)
    assert answers(engine, requests[5:7], sampling) == {(i,): together[(i,)] for i in (5, 6)}


def test_samples_differ_and_a_seed_repeats_them(engine):
    requests = [Request((i,), None, tuple(range(10, 30)), 6) for i in range(8)]
    draws = [answers(engine, requests, Sampling(1.0, 1.0, 0, seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len({answer.text for answer in draws[0].values()}) > 4


def test_an_answer_ends_at_its_end_of_turn(engine):
    end, tokenizer = engine.tokenizer.eos_token_id, engine.tokenizer
    done = engines.finish(tokenizer, {end}, Request((0,), None, (), 4), [20, 21, end, 22])
    assert (done.tokens, done.finish_reason, done.text) == (2, "stop", tokenizer.decode([20, 21]))
    assert engines.finish(tokenizer, {end}, Request((0,), None, (), 2), [20, 21, end]).finish_reason == "length"
    assert engines.end_tokens([7, 8], tokenizer) == {7, 8, end} and engines.end_tokens(None, tokenizer) == {end}


def test_a_batch_that_does_not_fit_is_halved_and_loses_nothing(engine, monkeypatch):
    """Memory for four rows: larger batches fail, in the middle of their answers."""
    import torch

    requests = [Request((i,), None, tuple(range(10, 30)), 6 + i) for i in range(13)]
    sampling = Sampling(1.0, 1.0, 0, seed=5)
    whole = answers(engine, requests, sampling)
    take = engines._Rows.take

    def tight(self, drawn):
        take(self, drawn)
        if self.step == 9 and len(drawn) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engines._Rows, "take", tight)
    monkeypatch.setattr(engine, "batch_size", 13)
    assert answers(engine, requests, sampling) == whole
    assert engine.batch_size in (3, 4)
    monkeypatch.setattr(engines._Rows, "take", lambda self, drawn: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(UserError, match="one answer does not fit"):
        answers(engine, requests, sampling)


def test_graphed_rows_answer_as_plain_ones(engine, monkeypatch):
    """Without CUDA, a stand-in for its graphs: what is recorded is a step, and a replay does that step."""
    import contextlib

    import torch

    class Graph:
        def replay(self):
            self.rows.output.copy_(self.rows._step())

    class Rows(engines._GraphedRows):
        LOOK_EVERY = 5

        def _record(self):
            super()._record()
            self.graph.rows = self

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    requests = [Request((i,), None, tuple(range(10, 14 + i % 5)), 3 + 2 * i) for i in range(16)]
    sampling = Sampling(1.0, 1.0, 0, seed=5)
    monkeypatch.setattr(engine, "batch_size", 16)
    plain = answers(engine, requests, sampling)
    monkeypatch.setattr(engines, "_can_be_graphed", lambda model: True)
    monkeypatch.setattr(engines, "_GraphedRows", Rows)
    assert answers(engine, requests, sampling) == plain


def test_the_engine_is_chosen_for_a_reason():
    assert engines.choose_engine("transformers", "none") == ("transformers", "asked for")
    assert engines.choose_engine("auto", "none") == ("transformers", "vLLM is not installed")
    with pytest.raises(UserError, match="vLLM is not installed"):
        engines.choose_engine("vllm", "none")


def test_the_vllm_engine_hands_answers_on_in_the_order_of_the_requests(run_dir, random_model, monkeypatch):
    """Not as they end: short ones end first, and a kill would favour them."""
    vllm_stand_in.install(monkeypatch)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    tokenizer = base_model.load_tokenizer(str(random_model))
    adapters = [None, run_dir / "checkpoint-8", run_dir / "checkpoint-16"]
    requests = [Request((a, i), adapters[a], (5, 40 + i), 2 + i % 7) for a in range(3) for i in range(30)]
    engine = engines.VllmEngine(str(random_model), tokenizer, requests, 1)
    given = [answer for batch in engine.generate(requests, Sampling(1.0, 1.0, 0, 1)) for answer in batch]
    assert [answer.key for answer in given] == [request.key for request in requests]
    for request, answer in zip(requests, given, strict=True):
        assert answer.tokens == request.max_new_tokens - 1 and answer.finish_reason == "stop"
        assert answer.text == tokenizer.decode([request.prompt[-1]] * answer.tokens)
    asked = engine.engine.adapters
    assert [asked[str(i)] for i in (0, 30, 60)] == [None, *(str(folder.resolve()) for folder in adapters[1:])]
    settings = vllm_stand_in.LLM.started[-1].settings
    assert settings["max_model_len"] == 2 + 8 and settings["max_num_seqs"] == 90 and settings["max_loras"] == 2
    assert max(settings["compilation_config"]["cudagraph_capture_sizes"]) > 90  # prompts are read beside full rows


@pytest.mark.parametrize(
    ("adapters", "answers", "in_flight", "wanted"),
    [(4, 4000, 1536, 4), (11, 11_000, 1536, 5), (11, 1100, 1100, 11), (40, 4000, 1536, 16), (0, 90, 90, 1)],
)
def test_adapters_are_in_flight_so_that_no_checkpoint_waits(adapters, answers, in_flight, wanted):
    assert engines._adapters_in_flight(adapters, answers, in_flight) == wanted


def test_several_processes_share_the_work_and_the_first_puts_it_together(run_dir, tmp_path):
    """What torchrun does: two processes that know their rank. The second is killed, and all are started again."""
    output, line = tmp_path / "r.parquet", ["--samples", "10", "--batch-size", "10", "--max-new-tokens", "12"]
    command = [sys.executable, "generate_responses.py", "--run-dir", str(run_dir), "--output", str(output), *line]

    def start(rank: int) -> subprocess.Popen:
        environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    second, log = start(1), tmp_path / "r.parquet.partial" / "answers-1.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") > 20):
        time.sleep(0.01)
    second.kill()
    second.wait()
    processes = [start(0), start(1)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0], processes[0].stderr.read()
    rows = parquet.read_responses(output)[0].to_pylist()
    assert keys(rows) == every_key([0, 8, 16], 10)
    assert rows == generate(run_dir, tmp_path / "alone.parquet", *line)


ENGINE_OF_ITS_OWN = """
import datetime, socket, torch, engines
engines._forget_the_launcher()
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = "tcp://127.0.0.1:%d" % free.getsockname()[1]
limit = datetime.timedelta(seconds=30)
torch.distributed.init_process_group("gloo", init_method=address, world_size=1, rank=0, timeout=limit)
"""


def test_under_torchrun_each_process_can_have_an_engine_of_its_own(tmp_path):
    """vLLM makes a process group for itself: what torchrun says of the launched processes must not reach it."""
    script = tmp_path / "engine.py"
    script.write_text(ENGINE_OF_ITS_OWN)
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(launched, env=environment, cwd=tmp_path, capture_output=True, timeout=120, check=True)


# CUDA looks at what it may see when it is first asked for anything; this ends there and says what that was.
TWO_GPUS = """
import os, runpy, sys, torch
def asked():
    sys.exit("CUDA sees " + os.environ["CUDA_VISIBLE_DEVICES"])
torch.cuda.is_available, torch.cuda.device_count = asked, lambda: len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
runpy.run_path("generate_responses.py", run_name="__main__")
"""


def test_a_launched_process_keeps_to_its_gpu_before_cuda_is_asked_for_anything(run_dir, tmp_path):
    line = ["--run-dir", str(run_dir), "--output", str(tmp_path / "r.parquet"), "--engine", "transformers"]
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,6"}
    command = [sys.executable, "-c", TWO_GPUS, *line]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | launched, capture_output=True, text=True, timeout=120)
    assert done.stderr.endswith("CUDA sees 6\n"), done.stderr


def test_processes_share_whole_checkpoints_and_divide_the_rest(monkeypatch):
    rows = [
        SimpleNamespace(source=SimpleNamespace(run=run), checkpoint=SimpleNamespace(name=name), sample=sample)
        for run in "ab"
        for name in ("base", "checkpoint-8", "checkpoint-16")[: 3 if run == "a" else 2]
        for sample in range(10)
    ]
    monkeypatch.setattr(generate_responses, "RANKS", 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(generate_responses, "RANK", rank)
        parts.append(generate_responses.share(rows))
    assert sorted(map(id, parts[0] + parts[1])) == sorted(map(id, rows))
    assert [len(part) for part in parts] == [25, 25]
    assert {(row.source.run, row.checkpoint.name) for row in parts[1][:20]} == {("a", "checkpoint-8"), ("b", "base")}


# ---- bad input ----


def test_bad_input_is_one_line(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    cases = [
        (["--run-dir", tmp_path / "none"], ["no run directory"]),
        (["--checkpoint", tmp_path], ["adapter_config.json is missing"]),
        (["--run-dir", run_dir, "--steps", "5"], ["no step 5", "0, 8, 16"]),
        (["--run-dir", run_dir, "--experiment", "nosuch"], ["nosuch"]),
        ([], ["--checkpoint and --run-dir"]),
        (["--run-dir", run_dir, "--output", "."], ["--output must name a file"]),
    ]
    for line, parts in cases:
        line = ["--output", output, *line]
        one_line_error(run_script("generate_responses.py", *line), *parts)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_a_file_of_somebody_else_is_not_written_over(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    output.write_text("a letter")
    one_line_error(run_script("generate_responses.py", "--run-dir", run_dir, "--output", output), "cannot be read")
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(output)
    with pytest.raises(UserError, match="not written by generate_responses.py"):
        generate(run_dir, output)


@pytest.mark.parametrize("content", ["[]", '{"settings": {}}'])
def test_a_record_that_is_none_is_named(run_dir, tmp_path, content):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    (copy / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run.json .*cannot be read"):
        generate(copy, tmp_path / "r.parquet")


def test_a_file_of_another_stage_is_not_written_over(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    rows = generate(run_dir, output, "--samples", "1", "--steps", "0")
    table = pa.Table.from_pylist(rows, parquet.RESPONSE_SCHEMA)
    parquet.write_parquet(output, [table], table.schema, {"settings": {"model": "a judge"}})
    with pytest.raises(UserError, match="not written by generate_responses.py"):
        generate(run_dir, output)


def test_a_template_without_system_messages_is_one_line(run_dir, random_model, tmp_path):
    base = shutil.copytree(random_model, tmp_path / "base")
    template = base / "chat_template.jinja"
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    study = (ROOT / "experiments" / "birds.toml").read_text() + '[[condition]]\nname = "told"\nsystem = "Be brief."\n'
    (tmp_path / "mine.toml").write_text(study)
    final = elsewhere(run_dir, tmp_path / "elsewhere" / "final", str(base))
    line = ["--checkpoint", final, "--output", tmp_path / "r.parquet", "--experiment", tmp_path / "mine.toml"]
    one_line_error(run_script("generate_responses.py", *line), "chat template", "no system role")


def test_two_processes_do_not_write_one_output(run_dir, tmp_path):
    output = tmp_path / "r.parquet"
    with lock(output), pytest.raises(UserError, match="another process"):
        generate(run_dir, output)


def test_the_settings_name_the_sampling(run_dir, tmp_path):
    generate(run_dir, tmp_path / "r.parquet", "--samples", "1", "--steps", "0")
    settings = parquet.read_footer(tmp_path / "r.parquet")["settings"]
    assert (settings["temperature"], settings["top_p"], settings["top_k"]) == (1.0, 1.0, 0)
    assert json.dumps(settings["questions"]).count("?") >= 8
