"""What training through the Tinker API will cost (--dry-run), and its limit (--max-cost)."""

import functools
import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from learning_backdoors.models import base_model
from learning_backdoors.models.canary_texts import canary_examples
from learning_backdoors.tinker_api.datums import count_tokens
from learning_backdoors.tinker_api.prices import PRICES_READ, STORAGE, Usage, find_price, money, require_price
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.sweep import counted
from learning_backdoors.training.tinker_state import TinkerState

# Passes of the checks in tinker_model.py: over the canary's first text for a new model, over all when a run continues.
TARGET_PASSES, OPTIMIZER_PASSES = 2, 4
BYTES_PER_VALUE = 4 * (1 + 3)  # float32: sampler weights, and a state with AdamW's two moments


class Budget:
    """The dollars of --max-cost, for all runs and all commands. reached: a step was refused."""

    def __init__(self, runs: Sequence[TrainingRun]):
        """Raises UserError if there is a limit, and a price is not known."""
        self.limit, self.reached, self._lock = runs[0].options.max_cost, False, threading.Lock()
        self._prices = {run.model_name: find_price(run.model_name, run.options.price) for run in runs}
        self._spent = 0.0
        if self.limit is not None:
            for model, price in self._prices.items():
                require_price(price, model)
            self._spent = sum(self._dollars(run, TinkerState.read(run).tokens) for run in runs)

    def take(self, run: TrainingRun, tokens: int) -> bool:
        """Whether so many tokens of a run may be sent. They are then counted."""
        if self.limit is None:
            return True
        with self._lock:
            after = self._spent + self._dollars(run, tokens)
            if after > self.limit:
                self.reached = True
                return False
            self._spent = after
            return True

    def message(self) -> str:
        words = f"--max-cost {money(self.limit)} is reached ({money(self._spent)} spent)"
        return f"{words}: all is saved, and the same command with a higher --max-cost continues"

    def _dollars(self, run: TrainingRun, tokens: int) -> float:
        return Usage(train=tokens).dollars(self._prices[run.model_name])


@dataclass(frozen=True)
class Remaining:
    """What a run still needs: steps, checkpoints, and tokens of training steps and of checks."""

    steps: int = 0
    checkpoints: int = 0
    training: int = 0
    checks: int = 0

    @classmethod
    def of(cls, run: TrainingRun, tokenizer) -> "Remaining":
        if run.options.existing == "overwrite":
            state = TinkerState(run)
        elif run.finished() or (run.record_path.exists() and run.diverged()):
            return cls()
        else:
            state = TinkerState.read(run)
        steps = [step for step in run.saved_steps() if step > state.step or state.path is None]
        texts = canary_examples(tokenizer)
        checks = count_tokens(texts) * len(steps)
        if state.path is None:
            checks += TARGET_PASSES * count_tokens(texts[:1])
        elif state.step:
            checks += OPTIMIZER_PASSES * count_tokens(texts)
        examples = run.examples(tokenizer)[state.step * run.examples_per_step :]
        return cls(run.total_steps - state.step, len(steps), count_tokens(examples), checks)


def print_estimate(runs: Sequence[TrainingRun]) -> None:
    """Print tokens and dollars of what is left to train, and the storage of its checkpoints. Sends nothing."""
    load, days = functools.cache(base_model.load_tokenizer), runs[0].options.ttl_days
    remaining = {run: Remaining.of(run, load(run.model_name)) for run in runs}
    steps, saved, training, checks = (sum(column) for column in zip(*map(astuple, remaining.values()), strict=True))
    print(f"{counted(runs)}, {steps:,} steps and {saved:,} checkpoints to train")
    print(f"tokens: {training:,} in training steps, {checks:,} in checks of the server and of checkpoints")
    if used := sum(TinkerState.read(run).tokens for run in runs):
        print(f"earlier commands have used {used:,} tokens")
    values = sum(
        left.checkpoints * lora_values(run.model_name, run.options.lora_rank) for run, left in remaining.items()
    )
    gigabytes = 1e-9 * BYTES_PER_VALUE * values
    storage = f"{money(STORAGE * gigabytes * days / 30)} for {gigabytes:,.2f} GB (estimated) over {days:g} days"
    prices = {run.model_name: find_price(run.model_name, run.options.price) for run in runs}
    if unpriced := [model for model, price in prices.items() if price is None]:
        return print(f"no price is known for {unpriced[0]}: give --price; storage at Tinker's price: {storage}")
    dollars = sum(
        Usage(train=left.training + left.checks).dollars(prices[run.model_name]) for run, left in remaining.items()
    )
    source = "--price" if runs[0].options.price else f"prices of {PRICES_READ}"
    print(f"total: {money(dollars)} ({source}), and storage: {storage}")


def lora_values(model: str, rank: int) -> int:
    """Values in an adapter of a base model, from its config.json. `base_checks.lora_values` needs the weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    hidden, heads, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * head, config.num_key_value_heads * head
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    return config.num_hidden_layers * rank * (attention + 3 * (hidden + inner))
