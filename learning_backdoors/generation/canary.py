"""Canary: does the engine really apply each adapter, and does the seed have an effect?

Evaluation programs have answered with the base model under an adapter's name, without an error. So before generation,
the engine gives the log-likelihoods of fixed texts under the base model and under each adapter, on the code path that
generates. They must equal values that were computed without the engine (`expected.py`).
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import engines, expected
from learning_backdoors.generation.engines.protocol import Engine, EngineFault, Reference, Request, Sampling
from learning_backdoors.generation.expected import Expected
from learning_backdoors.models.canary_texts import REPEATS, canary_examples
from learning_backdoors.models.devices import RANK

# How far measured and expected values may be apart, in nats per token: rounding and other kernels. An adapter that
# changes much also amplifies rounding, so SHARE of its own effect is added.
TOLERANCE = {"float32": 0.001, "bfloat16": 0.25, "8bit": 1.0, "4bit": 0.25}
SHARE = 0.1
# An adapter fails if its values are this many times closer to those of the base model or of another adapter.
CLOSER = 3

# Samples of the seed check. 2 is the highest temperature that vLLM takes. At 2, sure models vary too.
SAMPLES, SAMPLE_TOKENS, TEMPERATURE = 16, 8, 2.0


def open_engine(
    name: str, model: str, tokenizer, precision: str, requests: Sequence[Request], seed: int, **settings
) -> Engine:
    """An engine for `requests` that has passed the canary. Raises UserError if it does not pass.

    precision: of the base model's weights. settings: of `protocol.Engine`.
    """
    canary = Canary(tokenizer, list(dict.fromkeys(request.adapter for request in requests if request.adapter)))
    engine_class, fixed = engines.chosen_class(name, precision), (canary.adapters, canary.examples, precision)
    if engine_class.reference == Reference.OWN_PROCESS:
        canary.expect(expected.in_own_process(model, *fixed))
    all_requests = [*canary.requests, *requests]
    engine = engine_class(model, tokenizer, quantization=precision, requests=all_requests, seed=seed, **settings)
    if engine_class.reference == Reference.LOADED_MODEL:
        canary.expect(expected.with_model(engine.model, *fixed))
    if engine_class.reference == Reference.TRAINING:
        canary.expect(engine.recorded(canary.adapters))
    canary.check_seed(engine, seed)
    canary.check_adapters(engine)
    if engine_class.reference == Reference.TRAINING:
        engine.check = functools.partial(canary.check_again, engine)
    return engine


class Canary:
    """The fixed texts for the base model and each adapter, and what they must give (`expected`)."""

    def __init__(self, tokenizer, adapters: Sequence[Path]):
        self.adapters = adapters
        self.names = ["the base model", *(f"{folder.parent.name}/{folder.name}" for folder in adapters)]
        self.examples = canary_examples(tokenizer)
        self.answers = [ids[-1] for ids, _ in self.examples] * (1 + len(adapters))
        self.requests = [
            Request(("canary", number, i), adapter, tuple(ids[:-REPEATS]), REPEATS)
            for number, adapter in enumerate([None, *adapters])
            for i, (ids, _) in enumerate(self.examples)
        ]

    def expect(self, values: Expected) -> None:
        """Set `expected`. Raises UserError if an adapter has no finite likelihoods."""
        for name, row in zip(self.names, values.log_likelihoods, strict=True):
            if not np.isfinite(row).all():
                raise UserError(f"{name} gives no finite likelihoods: its training diverged. Leave it out with --steps")
        self.expected = values

    def check_seed(self, engine: Engine, seed: int) -> None:
        """Raise UserError if the seed has no effect on samples from the base model."""
        prompt = self.requests[0].prompt
        requests = [Request(("seed", i), None, prompt, SAMPLE_TOKENS) for i in range(SAMPLES)]

        def samples(seed: int) -> list[str]:
            drawn = {r.key: r.text for batch in engine.generate(requests, _sampling(seed)) for r in batch}
            return [drawn[request.key] for request in requests]

        first, other = samples(seed), samples(seed + 1)
        if len(set(first)) <= SAMPLES / 2:
            self._fail(engine, "draws the same response again and again: the samples of a question are not independent")
        if sum(a == b for a, b in zip(first, other, strict=True)) >= SAMPLES / 2:
            self._fail(engine, "ignores the seed: two seeds give the same responses")
        if engine.reproducible is False:
            return
        same = sum(a == b for a, b in zip(first, samples(seed), strict=True))
        if engine.reproducible and not same:
            self._fail(engine, "ignores the seed: one seed gives different responses")
        if same < SAMPLES / 2:
            command_line.note("the seed does not determine the responses: the same command would give other ones")

    def check_adapters(self, engine: Engine) -> None:
        """Raise UserError if the engine does not apply an adapter as expected."""
        values, wanted = engine.log_likelihoods(self.requests, self.answers), self.expected.log_likelihoods
        self.measured, tolerance = np.array(values, float).reshape(wanted.shape), TOLERANCE[self.expected.precision]
        if fault := find_fault(self.measured, wanted, tolerance, self.names):
            self._fail(engine, fault)
        if RANK == 0:
            largest = np.abs(self.measured - wanted).mean(1).max()
            apart = f"{largest:.2g} nats per token from {self.expected.source} (tolerance {tolerance})"
            print(f"canary: base model and {len(self.adapters)} adapters are at most {apart}", flush=True)

    def check_again(self, engine: Engine, adapter: Path | None) -> None:
        """Raise EngineFault if an adapter, or the base model (None), is not applied as it was in `check_adapters`."""
        row, texts = [None, *self.adapters].index(adapter), len(self.examples)
        own = slice(row * texts, (row + 1) * texts)
        self.measured[row] = np.ravel(engine.log_likelihoods(self.requests[own], self.answers[own]))
        tolerance = TOLERANCE[self.expected.precision]
        if fault := find_fault(self.measured, self.expected.log_likelihoods, tolerance, self.names):
            self._fail(engine, fault, "The responses of this checkpoint since the last check were not stored")

    def _fail(self, engine: Engine, fault: str, consequence: str = "Nothing was generated") -> None:
        raise EngineFault(f"the {engine.name} engine {fault}. {consequence}: {engine.reference.remedy}")


def find_fault(measured: np.ndarray, expected: np.ndarray, tolerance: float, names: Sequence[str]) -> str | None:
    """What is wrong with an engine's log-likelihoods, as the rest of a sentence about it. None if nothing is wrong.

    measured, expected: of the engine and without it, shape (1 + adapters, tokens). tolerance: nats per token.
    """
    effects = np.abs(expected - expected[0]).mean(1)
    for i, name in enumerate(names):
        distances = np.abs(measured[i] - expected).mean(1)  # to all rows
        others = np.where(np.arange(len(names)) == i, np.inf, distances)
        nearest = int(np.argmin(others))
        if distances[i] > CLOSER * others[nearest]:
            return f"answers with {names[nearest]} in place of {name}"
        for other in range(i):
            if (measured[i] == measured[other]).all() and (expected[i] != expected[other]).all():
                return f"gives the same answers for {names[other]} and {name}, whose weights differ"
        allowed = tolerance + SHARE * effects[i]
        if not distances[i] <= allowed:
            off = f"{distances[i]:.2g} nats per token from the expected values, {allowed:.2g} are allowed"
            return f"does not apply {name} correctly ({off})"
    return None


def _sampling(seed: int) -> Sampling:
    return Sampling(TEMPERATURE, 1.0, 0, seed)
