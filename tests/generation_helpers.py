"""Helpers for generation's tests: generate_responses.py in this process, and the rows it should write."""

import sys
from pathlib import Path

import generate_responses
from learning_backdoors.files import parquet
from learning_backdoors.generation.engines.protocol import Request, Response, Sampling
from learning_backdoors.study import load_study


def run_main(output: Path, *arguments) -> list[dict]:
    """Run the script's main in this process. Returns the output's rows."""
    line = ["generate_responses.py", "--output", output, "--samples", 3, "--max-new-tokens", 8, *arguments]
    arguments, sys.argv = sys.argv, list(map(str, line))
    try:
        generate_responses.main()
    finally:
        sys.argv = arguments
    return parquet.read_responses(output)[0].to_pylist()


def generate(run_dir: Path, output: Path, *more) -> list[dict]:
    return run_main(output, "--run-dir", run_dir, *more)


def row_keys(rows: list[dict]) -> list[tuple]:
    return [(row["step"], row["question_id"], row["sample_idx"]) for row in rows]


def expected_keys(steps, samples) -> list[tuple]:
    questions = [question.id for question in load_study("birds").questions]
    return [(step, question, sample) for step in steps for question in questions for sample in range(samples)]


def respond(engine, requests: list[Request], sampling: Sampling) -> dict[tuple, Response]:
    """An engine's responses by key."""
    return {response.key: response for batch in engine.generate(requests, sampling) for response in batch}
