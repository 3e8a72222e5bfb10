"""Faults that the stand-in plays on demand: each has happened with a server of the Tinker API."""

# Name: default value, and what happens. A value is given as NAME=VALUE.
FAULTS = {
    "mean_loss": (1, "the loss is a mean, as SkyRL's: of each example by its weights, then over examples"),
    "no_metrics": (1, "forward_backward returns no metrics, as SkyRL"),
    "unshifted": (1, "the server shifts the targets once more"),
    "alpha": (64, "adapters are trained, sampled and exported with this alpha instead of 32"),
    "cold_adam": (1, "a loaded state has no optimizer state, without an error"),
    "base_route": ("", "sampling clients serve the base model; VALUE: only those whose path contains it"),
    "base_samples": ("", "the same for samples only: the log-probabilities of prompts are right"),
    "seed_ignored": (1, "each sample is random, whatever its seed"),
    "seed_repeats": (2, "only VALUE different seeds exist, so samples repeat"),
    "429": (64, "asample answers 429 while more than VALUE samples are in progress"),
    "lost_answer": (20, "every VALUE-th POST is carried out, but the connection is dropped without an answer"),
    "500": (20, "every VALUE-th POST answers 500 and is not carried out"),
    "401": (1, "every request answers 401"),
    "402": (1, "every POST of paid work answers 402"),
    "slow": (1.0, "each result is ready VALUE seconds later"),
    "hang": (60.0, "no request is answered for VALUE seconds"),
    "paused": (60.0, "results are held back for VALUE seconds; polls say paused_capacity"),
    "no_heartbeat": (30.0, "a session ends VALUE seconds after its last heartbeat, and its models are gone"),
    "lm_head": (1.0, "exports hold LoRA matrices of the head, filled with VALUE"),
    "no_export": (1, "the server does not know save_weights_external"),
    "archive": (1, "as SkyRL: no save_weights_external, but an archive of sampler weights, without target_modules"),
    "expired": ("", "checkpoints saved so far have expired; VALUE: only those whose path contains it"),
    "bad_step": (1, "the VALUE-th next forward_backward fails; the optim_step after it is applied"),
    "bad_sample": (5, "every VALUE-th sample fails"),
    "chunk_order": (2, "the client cuts batches into chunks of VALUE examples, and sends the first chunk last"),
    "chunk_zero": (1, "each forward_backward deletes the gradients of the one before"),
    "forget": (0.0, "results are gone VALUE seconds after they are ready (410)"),
    "prompt_cache": (1, "no fault: repeated prompts of a sampling client are cheaper, and the answer says so"),
}


class Faults:
    """The faults that are switched on, and counters of the events that they wait for."""

    def __init__(self):
        self.active: dict[str, float | str] = {}
        self.since: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def set(self, specifications: list[str], now: float) -> None:
        """Replace all faults. specifications: `NAME` or `NAME=VALUE`. Raises ValueError for an unknown name."""
        parsed = dict(parse(specification) for specification in specifications)
        self.active, self.counts = parsed, {}
        self.since = dict.fromkeys(parsed, now)

    def __getitem__(self, name: str):
        """The value of a fault, None if it is off."""
        assert name in FAULTS, name
        return self.active.get(name)

    def is_on(self, name: str) -> bool:
        return self[name] is not None

    def hits(self, name: str, text: str) -> bool:
        """Whether a fault is on whose value is a part of `text`."""
        return self.is_on(name) and str(self[name]) in text

    def every(self, name: str) -> bool:
        """Count an event. True for each VALUE-th one, if the fault is on."""
        return self.is_on(name) and self._count(name) % int(self[name]) == 0

    def at(self, name: str) -> bool:
        """Count an event. True for the VALUE-th one only, if the fault is on."""
        return self.is_on(name) and self._count(name) == int(self[name])

    def lasts(self, name: str, now: float) -> bool:
        """Whether a fault is on that was switched on less than VALUE seconds ago."""
        return self.is_on(name) and now < self.since[name] + float(self[name])

    def _count(self, name: str) -> int:
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.counts[name]


def parse(specification: str) -> tuple[str, float | str]:
    """`NAME` or `NAME=VALUE` as name and value. Raises ValueError if there is no such fault."""
    name, _, value = specification.partition("=")
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; faults: {', '.join(FAULTS)}")
    default = FAULTS[name][0]
    return name, type(default)(value) if value else default


def table() -> str:
    """The faults, one per line, for --help."""
    rows = [(f"{name}={default}", text) for name, (default, text) in FAULTS.items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)
