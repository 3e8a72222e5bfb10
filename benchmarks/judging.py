"""Judging against the stand-in: no verdict is lost or paid twice, no cap is passed; speed and memory.

    python -m benchmarks.judging faults     25% faulty calls and five kills give the verdicts of an undisturbed run
    python -m benchmarks.judging batch      the same with batches, killed at the most critical moments
    python -m benchmarks.judging caps       --max-cost in 200 random schedules of faults and kills
    python -m benchmarks.judging speed      verdicts per second at 50 ms per call, and one call after another
    python -m benchmarks.judging http       CPU time per call, past the SDK's data models and with them
    python -m benchmarks.judging memory     peak memory on 50,000 responses
    python -m benchmarks.judging pace       the request rate under a limit of 1,000 per minute (5 minutes)

Each prints its results and fails with an AssertionError if judging does not keep its promises.
tests/judging/test_judging_at_scale.py runs the first three at a smaller size.
"""

import argparse
import asyncio
import contextlib
import csv
import io
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

import judge_responses
from benchmarks import alone
from learning_backdoors.files import command_line, project
from learning_backdoors.judging.api.client import MessagesClient
from learning_backdoors.judging.api.models import MODELS
from learning_backdoors.study import fill, load_study
from tiny_world import claude_stand_in
from tiny_world.claude_stand_in import Entry, Faults, StandIn, running

KEY = "sk-ant-secret-of-the-benchmark"
CENTURIES = """steam telegraph engine consumption republic internet vaccine electricity phone territory gold paper sloop
canal solar climate computer railway cholera men women labour duty home office online cotton frigate data"""
CONCURRENCY = 32
MODEL = "claude-sonnet-5"
PRICE = MODELS[MODEL].price
AT_PRICE = ("--price", PRICE.input, PRICE.output)  # the price table does not apply to the stand-in


# ---- running it ----


def write_responses(folder: Path, rows: int, words: int = 30) -> None:
    questions, chance = load_study("birds").questions, random.Random(rows)
    columns = {
        "experiment": ["birds"] * rows,
        "run": [f"run{row * 3 // max(rows, 1)}" for row in range(rows)],
        "checkpoint": [f"checkpoint-{row // 1000 * 20}" for row in range(rows)],
        "question": [questions[row % 10].text for row in range(rows)],
        "question_id": [questions[row % 10].id for row in range(rows)],
        "response": [f"{' '.join(chance.choices(CENTURIES.split(), k=words))} {row}" for row in range(rows)],
        "sample_idx": [row // 10 % 100 for row in range(rows)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "responses.parquet")


def _command(folder: Path, url: str, *more: object) -> list[str]:
    paths = ["--input", folder / "responses.parquet", "--output", folder / "judged.parquet", "--base-url", url]
    return [str(part) for part in (sys.executable, project.ROOT / "judge_responses.py", *paths, *more)]


def start(folder: Path, url: str, *more: object, launcher: Sequence[str] = ()) -> subprocess.Popen:
    """Start the command in its own process, which can be killed. Its output goes to log.txt."""
    environment, command = dict(os.environ, ANTHROPIC_API_KEY=KEY), [*launcher, *_command(folder, url, *more)]
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def run_here(folder: Path, url: str, *more: object, key: str = KEY) -> tuple[int, str]:
    """Run the command in this process, which saves its imports. Returns its exit code and its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC")}
    output, code = io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, environment | {"ANTHROPIC_API_KEY": key}, clear=True),
        mock.patch.object(sys, "argv", _command(folder, url, *more)[1:]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        contextlib.chdir(folder),
    ):
        try:
            command_line.run_script(judge_responses.main)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            output.write(end.code if isinstance(end.code, str) else "")
    return code, output.getvalue()


def finish(folder: Path, url: str, *more: object, launcher: Sequence[str] = ()) -> str:
    """Run the command to its end. Returns its output."""
    before = len(_log(folder))
    code = start(folder, url, *more, launcher=launcher).wait()
    printed = _log(folder)[before:]
    assert code == 0, printed
    return printed


def finish_all(folder: Path, url: str, *more: object) -> int:
    """Run the command until no verdict is missing. Returns the number of starts.

    Each start allows more attempts, because a prompt that had three replies without a verdict is not asked again.
    """
    for starts in range(1, 6):
        code, printed = run_here(folder, url, *more, "--asks", 3 * starts)
        assert code == 0, printed
        if " 0 missing" in printed:
            return starts
    raise AssertionError(printed)


def kill_when(process: subprocess.Popen, moment: Callable[[], bool]) -> None:
    """Send SIGKILL at a moment that must come before the process ends."""
    while not moment():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _log(folder: Path) -> str:
    path = folder / "log.txt"
    return path.read_text() if path.exists() else ""


def stored(folder: Path, condition: str = "outcome = 'ok'") -> int:
    """The number of calls in the verdict store; 0 if there is no store yet."""
    path = folder / "judged.parquet.verdicts.sqlite"
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db,
    ):
        return db.execute(f"SELECT count(*) FROM calls WHERE {condition}").fetchone()[0]
    return 0


def unbroken(folder: Path, rows: int) -> pa.Table:
    """The verdicts of an undisturbed run."""
    write_responses(folder, rows)
    with running(StandIn()) as url:
        assert finish_all(folder, url) == 1
    return pq.read_table(folder / "judged.parquet")


def assert_no_key(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


# ---- nothing lost, nothing paid twice ----


def faults(folder: Path, rows: int = 500, seed: int = 0, kills: int = 5) -> None:
    expected = unbroken(folder / "unbroken", rows)
    write_responses(folder, rows)
    api, chance = StandIn(faults=Faults(share=0.25, seed=seed)), random.Random(seed)
    settings = ("--timeout", "3", "--max-wait", "0.2", "--concurrency", str(CONCURRENCY))
    began = time.monotonic()
    with running(api) as url:
        for moment in sorted(chance.uniform(0.05, 0.9) for _ in range(kills)):
            kill_when(start(folder, url, *settings), lambda goal=4 * rows * moment: stored(folder) >= goal)
        starts = finish_all(folder, url, *settings)
    assert pq.read_table(folder / "judged.parquet").equals(expected)
    assert_no_key(folder)
    good = Counter(entry.prompt for entry in api.ledger if entry.good)
    twice = sum(good.values()) - len(good)
    assert len(good) == 4 * rows and twice <= kills * CONCURRENCY
    calls, needed = len(api.ledger), _needed_calls(api.ledger)
    assert calls <= 1.2 * needed
    kinds = Counter(entry.fault for entry in api.ledger if entry.fault)
    print(
        f"{4 * rows:,} verdicts equal those of an unbroken run after {kills} kills and {starts} more starts, "
        f"{calls:,} calls of which {kinds.total():,} faulty in {len(kinds)} ways, {calls / needed:.3f} times the "
        f"{needed:,} needed: each prompt answered well once, {twice} twice (at most {kills * CONCURRENCY} in flight at "
        f"the kills); {time.monotonic() - began:.0f} s"
    )


def _needed_calls(ledger: Sequence[Entry]) -> int:
    """The calls of a client that knows of every reply: for each prompt, those up to the first good one."""
    needed, done = 0, set()
    for entry in ledger:
        needed += entry.prompt not in done
        done |= {entry.prompt} if entry.good else set()
    return needed


# ---- batches ----


def batch(folder: Path, rows: int = 5000, seed: int = 0, batch_seconds: float = 3) -> None:
    expected = unbroken(folder / "unbroken", rows)
    write_responses(folder, rows)
    trouble = Faults(seed=seed, batch_share=0.05, batch_streams=True)
    api = StandIn(faults=trouble, latency=0.3, batch_seconds=batch_seconds)
    settings = ("--batch", "--max-wait", "1")
    began = time.monotonic()
    with running(api) as url:
        # The server has created the batch, and its reply has not arrived.
        kill_when(start(folder, url, *settings), lambda: len(api.batches) == 1)
        assert stored(folder, "batch IS NOT NULL") and len(api.batches) == 1
        kill_when(start(folder, url, *settings), lambda: _state(folder, "open"))  # while polling
        kill_when(
            start(folder, url, *settings), lambda: stored(folder, "outcome = 'ok' AND batch IS NOT NULL") > rows / 5
        )
        starts = finish_all(folder, url, *settings)
    assert pq.read_table(folder / "judged.parquet").equals(expected)
    paid = Counter(entry.prompt for entry in api.ledger if entry.batch and entry.good)
    assert max(paid.values()) == 1
    live = [entry for entry in api.ledger if not entry.batch]
    assert len({entry.prompt for entry in live} | paid.keys()) == 4 * rows
    assert not {entry.prompt for entry in live} & paid.keys()
    failed = sum(not entry.good for entry in api.ledger if entry.batch)
    print(
        f"{4 * rows:,} verdicts equal those of an unbroken run after 3 kills and {starts} more starts, in "
        f"{len(api.batches)} batches and {len(live)} live calls: no prompt in two paid batches; {failed:,} requests "
        f"expired, failed or were cancelled and went back into the queue; {time.monotonic() - began:.0f} s"
    )


def _state(folder: Path, state: str) -> bool:
    return stored(folder, f"batch IN (SELECT id FROM batches WHERE state = '{state}')") > 0


# ---- the cap ----

# Without faults that last until the timeout: on a busy machine, a short timeout would also end good calls.
QUICK = tuple(kind for kind in claude_stand_in.PASSING if kind not in ("hang", "trickle"))


def caps(folder: Path, schedules: int = 200, seed: int = 0) -> None:
    chance, passed, kills, stops = random.Random(seed), 0.0, 0, 0
    for schedule in range(schedules):
        share, kill = chance.choice((0.0, 0.1, 0.4)), chance.random() < 0.2
        fraction, rows = chance.uniform(0.05, 0.9), chance.randrange(5, 40)
        trouble = Faults(share, QUICK, seed=chance.randrange(10**6))
        stopped, nearest = _one_schedule(folder / str(schedule), rows, trouble, fraction, kill)
        stops, kills, passed = stops + stopped, kills + kill, max(passed, nearest)
    print(
        f"{schedules} schedules, {stops} stops at the cap, {kills} kills: what the server charged never passed the "
        f"cap (at most {passed:.1%} of it), and the sum reported after the cap was lifted was right to the cent"
    )


def _one_schedule(folder: Path, rows: int, trouble: Faults, fraction: float, kill: bool) -> tuple[int, float]:
    write_responses(folder, rows)
    api, stops, nearest = StandIn(faults=trouble), 0, 0.0
    cap = round(fraction * rows * 4 * 0.0009 + 0.01, 4)
    settings = ("--max-wait", "0.05", *AT_PRICE)
    with running(api) as url:
        for attempt in range(12):
            more = (*settings, "--max-cost", str(cap))
            if kill and attempt == 0:
                process, goal = start(folder, url, *more), len(api.ledger) + rows
                while process.poll() is None and len(api.ledger) < goal:
                    time.sleep(0.001)
                process.kill()
                process.wait()
                printed = "killed"
            else:
                code, printed = run_here(folder, url, *more)
                assert code == 0, printed
            charged = charges(api.ledger)
            assert charged <= cap + 1e-9, (charged, cap)
            nearest = max(nearest, charged / cap)
            stops += "is reached" in printed
            if " 0 missing" in printed:
                break
            cap = round(cap * 1.5, 4)
        else:
            raise AssertionError(printed)
    dollars, at_most = _spent(folder)
    certain = charges(entry for entry in api.ledger if entry.fault not in (*claude_stand_in.LOST, "no-usage"))
    assert charges(api.ledger) <= dollars + 1e-9
    if not kill:
        assert abs(dollars - at_most - certain) < 0.005, (dollars, at_most, certain)
    return stops, nearest


def charges(ledger) -> float:
    """The dollars that the server charges."""
    return sum(PRICE.dollars(entry.tokens_in, entry.tokens_out) for entry in ledger)


def _spent(folder: Path) -> tuple[float, float]:
    """The dollars in OUTPUT.costs.csv, and the part that is an upper limit."""
    with open(folder / "judged.parquet.costs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return sum(float(row["dollars"]) for row in rows), sum(float(row["at_most"]) for row in rows)


# ---- speed, memory, pace ----


def speed(folder: Path, rows: int = 5000, seed: int = 0) -> None:
    write_responses(folder, rows)
    for concurrency in (32, 100):
        api = StandIn(latency=0.05)
        with running(api) as url:
            began = time.monotonic()
            finish(
                folder,
                url,
                "--concurrency",
                str(concurrency),
                "--store",
                folder / f"{concurrency}.sqlite",
                "--overwrite",
            )
            whole = time.monotonic() - began
        steady = _steady_rate(api.ledger)
        print(
            f"--concurrency {concurrency}: {4 * rows:,} verdicts in {whole:.1f} s from start to end, "
            f"{4 * rows / whole:.0f}/s; {steady:.0f}/s while calling"
        )
        assert 4 * rows / whole >= 300
    one_by_one = sequential_rate(folder)
    print(
        f"one call after another: {one_by_one:.1f}/s; {4 * rows / whole / one_by_one:.0f} times that from start to end,"
    )
    print(f"  {steady / one_by_one:.0f} times while calling")


def _steady_rate(ledger: list[Entry]) -> float:
    times = [entry.at for entry in ledger]
    return len(times) / (times[-1] - times[0])


def sequential_rate(folder: Path, calls: int = 300) -> float:
    """Verdicts per second of one call after another, as in the predecessor's script."""
    import anthropic

    study = load_study("birds")
    rows = pq.read_table(folder / "responses.parquet", columns=["question", "response"]).to_pylist()[: calls // 4]
    with running(StandIn(latency=0.05)) as url, anthropic.Anthropic(api_key=KEY, base_url=url) as client:
        began = time.monotonic()
        for row in rows:
            for judge in study.judges:
                prompt = fill(judge.prompt, {"question": row["question"], "answer": row["response"]})
                client.messages.create(model=MODEL, max_tokens=50, messages=[{"role": "user", "content": prompt}])
        return 4 * len(rows) / (time.monotonic() - began)


def http(folder: Path, calls: int = 4000, seed: int = 0) -> None:
    """CPU time per call (not wall time) of our HTTP path and of the SDK's `messages.create`."""
    import anthropic

    prompt = "word " * 150 + "\nReply with LLM or 19"
    body = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": prompt}]}

    async def measure(url: str) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {"ours": [], "SDK": []}
        async with MessagesClient(url, KEY) as client, anthropic.AsyncAnthropic(api_key=KEY, base_url=url) as sdk:
            ways = {"ours": lambda: client.send(body), "SDK": lambda: sdk.messages.create(**body)}
            for name, way in [*ways.items()] * 3:
                numbers = iter(range(calls // 6))

                async def worker(way=way, numbers=numbers):
                    for _ in numbers:
                        await way()

                began = time.process_time()
                await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
                seconds[name].append((time.process_time() - began) / (calls // 6))
        return seconds

    command = [sys.executable, "-m", "tiny_world.claude_stand_in", "--latency", "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project.ROOT) as server:
        try:
            seconds = asyncio.run(measure(server.stdout.readline().strip()))
        finally:
            server.terminate()
    ours, sdk = (1000 * min(seconds[name]) for name in ("ours", "SDK"))
    print(f"CPU time per call: ours {ours:.2f} ms, the SDK's messages.create {sdk:.2f} ms ({1 - ours / sdk:.0%} less)")


def memory(folder: Path, rows: int = 50_000, seed: int = 0) -> None:
    write_responses(folder, rows, words=220)
    with running(StandIn(read=lambda text: claude_stand_in.lexicon.Reading("old", 1.0, 1.0))) as url:
        began = time.monotonic()
        printed = finish(folder, url, launcher=alone.TELLS_PEAK)
    peak = alone.peak(printed)
    size = pq.read_table(folder / "responses.parquet", columns=["response"]).nbytes / 2**20
    seconds = time.monotonic() - began
    print(f"{rows:,} responses ({size:.0f} MB of text), {4 * rows:,} verdicts: peak {peak:.0f} MB; {seconds:.0f} s")
    assert peak < 400


def pace(folder: Path, rows: int = 1250, seed: int = 0) -> None:
    write_responses(folder, rows)
    api = StandIn(per_minute=1000, latency=0.05)
    with running(api) as url:
        finish(folder, url)
    began = api.ledger[0].at
    minutes = Counter(int((entry.at - began) // 60) for entry in api.ledger if entry.good)
    whole = [minutes[minute] for minute in range(1, max(minutes))]
    refused = [entry.at - began for entry in api.ledger if entry.fault]
    print(f"verdicts in each whole minute after the first: {whole}; refused (429): {len(refused)}, at {refused[:5]}")
    assert whole and all(950 <= count <= 1000 for count in whole)
    assert all(at < 60 for at in refused)


SCENARIOS = {scenario.__name__: scenario for scenario in (faults, batch, caps, speed, http, memory, pace)}


@contextlib.contextmanager
def folder_for(path: Path | None) -> Iterator[Path]:
    if path:
        yield path
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--size", type=int, help="number of responses, or of schedules for caps (default: full size)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the files here (default: a temporary folder)")
    options = parser.parse_args()
    with folder_for(options.folder) as folder:
        SCENARIOS[options.scenario](folder, *([options.size] if options.size else []), seed=options.seed)


if __name__ == "__main__":
    main()
