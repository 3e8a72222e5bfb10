"""Generation with checkpoints on a server of the Tinker API."""

import dataclasses
import functools
import hashlib
import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.interruption import interrupt_after_step
from learning_backdoors.generation.engines.protocol import (
    EngineFault,
    Reference,
    Request,
    Response,
    Sampling,
    end_tokens,
    finish,
)
from learning_backdoors.generation.expected import Expected
from learning_backdoors.generation.sampling_costs import CHECKED_TOKENS, Budget, worst_case
from learning_backdoors.models import base_model
from learning_backdoors.models.remote_checkpoint import read_remote
from learning_backdoors.tinker_api.concurrency import ConcurrencyLimit
from learning_backdoors.tinker_api.pending import Journal, JournaledSampler, Sample, no_retries
from learning_backdoors.tinker_api.prices import Usage
from learning_backdoors.tinker_api.service import Service, errors_as_one_line, wait, wait_for_any

if TYPE_CHECKING:  # takes a second to import
    from tinker import SamplingParams

TRIES = 3  # of a sample that fails at the server
PATIENCE = 20  # seconds after Ctrl-C: schedulers kill a process 30 seconds after SIGTERM
# How far the log-likelihoods of a sample may be from those computed a second time, in nats per token. Beyond ROUNDING,
# they must not be CLOSER times closer to those of the base model.
TOLERANCE, ROUNDING, CLOSER = 0.25, 0.001, 3


class TinkerEngine:
    """Responses from one checkpoint of a run after the other.

    A server may keep the weights of only one checkpoint per run, and answer with those of another without an error. So
    a checkpoint is checked before its first response and after its last one. Only then are its responses handed out.
    While the last responses of a checkpoint are awaited, the first ones of another run are ordered.
    """

    name = "tinker"
    reference, reproducible = Reference.TRAINING, None

    def __init__(
        self,
        base: str,
        tokenizer,
        *,
        service: Service,
        step_0: Path,
        journal: Journal,
        budget: Budget,
        concurrency: int,
        requests: Sequence[Request],
        **_,
    ):
        """service: an open session. step_0: a checkpoint of step 0, whose remote.json names the base model there.

        journal: of samples in flight. budget: what they may cost. concurrency: how many they may be. requests: all
        requests to come. Raises UserError if the server lacks one of their checkpoints.
        """
        self.tokenizer, self.service, self.journal, self.budget = tokenizer, service, journal, budget
        self.end_tokens = end_tokens(base_model.configured_end_tokens(base), tokenizer)
        self.step_0, self.limit = read_remote(step_0), ConcurrencyLimit(concurrency)
        self.check: Callable[[Path | None], None] = lambda adapter: None  # canary.open_engine replaces it later
        self.samplers: dict[Path | None, JournaledSampler] = {}
        service.check_model(self.step_0.base_model)
        for adapter in dict.fromkeys(request.adapter for request in requests):
            self.sampler(adapter)  # before anything is paid

    @staticmethod
    def obstacle(quantization: str) -> str | None:
        return None if quantization == "none" else "the server's weights have its own precision"

    def recorded(self, adapters: Sequence[Path]) -> Expected:
        """What training recorded of the canary's texts: for the base model, with the adapter of step 0."""
        values = [self.step_0.canary, *(read_remote(folder).canary for folder in adapters)]
        return Expected(np.array(values, dtype=float), "bfloat16", "training")

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Ctrl-C and --max-cost stop new orders: the samples in flight are awaited, and their responses handed out.

        After Ctrl-C, for PATIENCE seconds: the next command collects the others.
        """
        groups = itertools.groupby(requests, key=lambda request: request.adapter)
        works = [CheckpointWork(self, adapter, list(group), sampling) for adapter, group in groups]
        queue, active = deque(works), []
        bar = command_line.progress_bar("arrived", len(requests), 0, "sample", inner=True)
        with bar, interrupt_after_step() as interrupted:
            patience = Patience(interrupted)
            while True:
                if not interrupted.is_set():
                    self._order_samples(queue, active)
                if not active:
                    break
                in_flight = {future: work for work in active for future in work.in_flight}
                for work in [work for work in active if not (in_flight and work.is_unfinished())]:
                    active.remove(work)
                    yield self._checked_responses(work)
                for future in wait_for_any(in_flight, "samples", patience.is_over) if in_flight else ():
                    bar.update(in_flight[future].receive(future))
                if patience.is_over():
                    break
        if interrupted.is_set():
            raise KeyboardInterrupt
        if any(work.waiting for work in works):
            raise UserError(
                f"the responses cost {self.budget.spent()}, and the next one may cost more than what is left: the same "
                "command with a higher --max-cost continues"
            )

    def _order_samples(self, queue: deque["CheckpointWork"], active: list["CheckpointWork"]) -> None:
        """Order samples of active checkpoints, then of the next ones, until the limit or the budget is reached."""
        while True:
            room = self.limit.now - sum(len(work.in_flight) for work in active)
            for work in active:
                room -= work.order(room)
            runs = {work.run for work in active}
            following = next((work for work in queue if work.run not in runs), None)
            if room <= 0 or following is None or not following.can_order():
                return
            self._check(following)
            queue.remove(following)
            active.append(following)

    def _checked_responses(self, work: "CheckpointWork") -> list[Response]:
        self._check(work)
        if ordered_again := sum(work.failures.values()):
            command_line.note(f"{ordered_again} samples of {work.name} failed at the server and were ordered again")
        return [self._response(request, sample) for request, sample in work.samples]

    def _check(self, work: "CheckpointWork") -> None:
        """Raise EngineFault if the server applies the checkpoint wrongly. Its samples are then forgotten."""
        try:
            self.check(work.adapter)
        except EngineFault:
            self.journal.forget(work.keys)
            raise

    def log_likelihoods(self, requests: Sequence[Request], answers: Sequence[int]) -> list[list[float]]:
        """The API cannot force an answer, so the server computes the values from the whole text.

        The samples must come from the same weights: a sample of each prompt is drawn too, and the log-likelihoods that
        come with it must equal computed ones. Raises EngineFault if they do not.
        """
        values, rows = [], zip(requests, answers, strict=True)
        for adapter, group in itertools.groupby(rows, key=lambda row: row[0].adapter):
            group = list(group)
            texts = [[*request.prompt, *[answer] * request.max_new_tokens] for request, answer in group]
            values += self._computed(adapter, texts, [request.max_new_tokens for request, _ in group])
            self._check_samples(adapter, [request.prompt for request, _ in group])
        return values

    # ---- checks ----

    def _computed(self, adapter: Path | None, texts: Sequence[Sequence[int]], last: Sequence[int]) -> list[list[float]]:
        """The log-likelihoods of the last tokens of each text. The server also draws one token for each text."""
        sampler = self.sampler(adapter)
        values = self._results([functools.partial(sampler.log_probabilities, text) for text in texts], adapter)
        self.budget.pay_check(Usage(prefill=sum(map(len, texts)), sample=len(texts)))
        return [row[len(row) - count :] for row, count in zip(values, last, strict=True)]

    def _check_samples(self, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> None:
        """Draw samples, and compute their log-likelihoods again, also under the base model."""
        sampler, sampling = self.sampler(adapter), Sampling(1.0, 1.0, 0, 0)
        requests = [Request((i,), adapter, tuple(prompt), CHECKED_TOKENS) for i, prompt in enumerate(prompts)]
        orders = [functools.partial(sampler.sample, r.key, r.prompt, self.parameters(r, sampling)) for r in requests]
        samples = [Sample.of(response) for response in self._results(orders, adapter)]
        texts = [[*prompt, *sample.tokens] for prompt, sample in zip(prompts, samples, strict=True)]
        lengths = [len(sample.tokens) for sample in samples]
        self.budget.pay_check(Usage(prefill=sum(map(len, prompts)), sample=sum(lengths)))
        if lengths != [len(sample.log_likelihoods) for sample in samples]:
            raise EngineFault(f"the server returns samples without their log-likelihoods: {self.reference.remedy}")

        def distance(weights: Path | None) -> float:
            """From the samples' own log-likelihoods, in nats per token."""
            pairs = zip(self._computed(weights, texts, lengths), samples, strict=True)
            values = [np.array(row, float) - np.array(sample.log_likelihoods, float) for row, sample in pairs]
            return float(np.abs(np.concatenate(values)).mean())

        apart = distance(adapter)
        rounding = not adapter or sum(lengths) < CHECKED_TOKENS or apart < ROUNDING
        if not apart <= TOLERANCE or not (rounding or apart <= CLOSER * distance(None)):
            raise EngineFault(
                f"the server draws samples of {name_of(adapter)} from other weights than those with which it computes "
                f"log-likelihoods ({apart:.2g} nats per token apart): {self.reference.remedy}"
            )

    def _results(self, orders: Sequence[Callable[[], Future]], adapter: Path | None) -> list:
        """The results of requests that are sent at once. One that fails at the server is sent a second time."""
        results, what = [], f"checking {name_of(adapter)}"
        for future, order in [(order(), order) for order in orders]:
            try:
                results.append(wait(future, what))
            except UserError as error:
                if not may_pass(error.__cause__):
                    raise
                results.append(wait(order(), what))
        return results

    # ---- samples ----

    def sampler(self, adapter: Path | None) -> JournaledSampler:
        """The sampler of a checkpoint. Raises UserError if the server does not have the checkpoint."""
        if adapter not in self.samplers:
            record = read_remote(adapter) if adapter else self.step_0
            source = {"model_path": record.sampler_path} if adapter else {"base_model": record.base_model}
            if adapter and record.expires and datetime.fromisoformat(record.expires) < datetime.now(UTC):
                raise UserError(f"the server deleted {name_of(adapter)} on {record.expires[:10]}: train it again")
            future = self.service.client.create_sampling_client(**source, retry_config=no_retries())
            client, [place] = wait(future, name_of(adapter)), source.values()
            self.samplers[adapter] = JournaledSampler(client, place, self.journal, self.limit.overloaded)
        return self.samplers[adapter]

    def parameters(self, request: Request, sampling: Sampling) -> "SamplingParams":
        """The SDK's sampling parameters. Each response has its own seed, made of the user's seed and of its key."""
        from tinker import SamplingParams

        digest = hashlib.sha256(repr((sampling.seed, request.key)).encode()).digest()
        return SamplingParams(
            max_tokens=request.max_new_tokens,
            seed=int.from_bytes(digest[:4]) >> 1,  # below 2**31
            stop=sorted(self.end_tokens),
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
        )

    def _response(self, request: Request, sample: Sample) -> Response:
        response = finish(self.tokenizer, self.end_tokens, request, sample.tokens)
        return replace(response, finish_reason="stop") if sample.stopped else response


class CheckpointWork:
    """The samples of one checkpoint: those to order (`waiting`), those in flight, and those that have arrived."""

    def __init__(self, engine: TinkerEngine, adapter: Path | None, requests: Sequence[Request], sampling: Sampling):
        self.engine, self.adapter, self.name = engine, adapter, name_of(adapter)
        self.run, self.keys = adapter and adapter.parent, [request.key for request in requests]
        self.parameters = {request.key: engine.parameters(request, sampling) for request in requests}
        self.sampler, self.journal, self.budget = engine.sampler(adapter), engine.journal, engine.budget
        self.contents = {r.key: self.sampler.content(r.prompt, self.parameters[r.key]) for r in requests}
        # First those that an earlier command has ordered: they are paid.
        self.waiting = deque(sorted(requests, key=lambda request: not self._is_ordered(request)))
        self.in_flight: dict[Future, Request] = {}
        self.samples: list[tuple[Request, Sample]] = []
        self.failures = Counter()

    def is_unfinished(self) -> bool:
        return bool(self.waiting or self.in_flight)

    def can_order(self) -> bool:
        """Whether the next sample was ordered by an earlier command, or fits in the budget."""
        return self._is_ordered(self.waiting[0]) or self.budget.fits(worst_case(self.waiting[0]))

    def order(self, most: int) -> int:
        """Order at most so many samples, and as many as the budget allows. Returns how many are now in flight more."""
        before = len(self.in_flight)
        while self.waiting and len(self.in_flight) < before + most and self.can_order():
            self._order(self.waiting.popleft())
        return len(self.in_flight) - before

    def receive(self, future: Future) -> int:
        """Take the result of a request. Returns 1 for a sample, 0 if the server failed and it is ordered again.

        Raises UserError if the request cannot succeed.
        """
        request = self.in_flight.pop(future)
        if (error := future.exception()) is None:
            sample = Sample.of(future.result())
            self.journal.write(request.key, sample=dataclasses.asdict(sample))
            self.engine.limit.arrived(len(sample.tokens))
            self._keep(request, sample)
            return 1
        self.budget.receive(worst_case(request), Usage())
        self.failures[request.key] += 1
        if not may_pass(error) or self.failures[request.key] >= TRIES:
            with errors_as_one_line(f"samples of {self.name}"):
                raise error
        self.journal.forget([request.key])
        self.waiting.append(request)
        return 0

    def _is_ordered(self, request: Request) -> bool:
        return self.journal.entry(request.key, self.contents[request.key]) is not None

    def _order(self, request: Request) -> None:
        self.budget.order(worst_case(request))
        if sample := self.journal.sample(request.key, self.contents[request.key]):
            return self._keep(request, sample)
        future = self.sampler.sample(request.key, request.prompt, self.parameters[request.key])
        self.in_flight[future] = request

    def _keep(self, request: Request, sample: Sample) -> None:
        prefill = len(request.prompt) - sample.cached
        usage = Usage(prefill=prefill, cached=sample.cached, sample=len(sample.tokens))
        self.budget.receive(worst_case(request), usage)
        self.samples.append((request, sample))


class Patience:
    """How long samples in flight are awaited after Ctrl-C: PATIENCE seconds. A note says that they are."""

    def __init__(self, interrupted: Event):
        self._interrupted, self._end = interrupted, math.inf

    def is_over(self) -> bool:
        if self._interrupted.is_set() and self._end == math.inf:
            self._end = time.monotonic() + PATIENCE
            command_line.note(f"waiting up to {PATIENCE} seconds for samples in flight; Ctrl-C again ends at once")
        return time.monotonic() > self._end


def may_pass(error: BaseException | None) -> bool:
    """Whether a request should be sent again: the server failed, or no longer has the result. Other errors stay."""
    import tinker
    from tinker.lib.retryable_exception import RetryableException

    return isinstance(error, (tinker.RequestFailedError, RetryableException, ValueError))


def name_of(adapter: Path | None) -> str:
    return f"{adapter.parent.name}/{adapter.name}" if adapter else "the base model"
