"""What training through the Tinker API will cost (--dry-run), and its limit (--max-cost)."""

import collections
import functools
import threading
from collections.abc import Sequence

from learning_backdoors.models import base_model
from learning_backdoors.models.canary_texts import canary_examples
from learning_backdoors.tinker_api.datums import count_tokens
from learning_backdoors.tinker_api.prices import PRICES_READ, STORAGE, Usage, find_price, money, require_price
from learning_backdoors.training.run import TrainingRun
from learning_backdoors.training.sweep import counted
from learning_backdoors.training.tinker_state import TinkerState

CHECK_PASSES = 4  # of the canary's texts, when a run continues: the check of the optimizer (tinker_model.py)
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
        return (
            f"--max-cost ${self.limit:g} is reached ({money(self._spent)} spent): all is saved, and the same command "
            "with a higher --max-cost continues"
        )

    def _dollars(self, run: TrainingRun, tokens: int) -> float:
        return Usage(train=tokens).dollars(self._prices[run.model_name])


def print_estimate(runs: Sequence[TrainingRun]) -> None:
    """Print tokens and dollars of what is left to train, and the storage of its checkpoints. Sends nothing."""
    load, count, left = functools.cache(base_model.load_tokenizer), collections.Counter(), Usage()
    dollars, unpriced, days = 0.0, set(), runs[0].options.ttl_days
    for run in runs:
        state, price = TinkerState.read(run), find_price(run.model_name, run.options.price)
        tokenizer, steps, saved = load(run.model_name), *_left(run, state)
        examples = run.examples(tokenizer)[state.step * run.examples_per_step :] if steps else []
        canary = count_tokens(canary_examples(tokenizer)) * (saved + CHECK_PASSES * bool(steps and state.step))
        usage = Usage(train=count_tokens(examples) + canary)
        left += usage
        count.update(steps=steps, checkpoints=saved, canary=canary, spent=state.tokens)
        count["bytes"] += saved * BYTES_PER_VALUE * lora_values(run.model_name, run.options.lora_rank)
        dollars += usage.dollars(price) if price else 0.0
        unpriced |= set() if price else {run.model_name}
    print(f"{counted(runs)}, {count['steps']:,} steps and {count['checkpoints']:,} checkpoints to train")
    print(f"tokens: {left.train:,} in training, {count['canary']:,} of them for the checks of checkpoints")
    if count["spent"]:
        print(f"used so far: {count['spent']:,} tokens")
    gigabytes = 1e-9 * count["bytes"]
    storage = f"{money(STORAGE * gigabytes * days / 30)} for {gigabytes:,.2f} GB (estimated) over {days:g} days"
    if unpriced:
        return print(f"no price is known for {sorted(unpriced)[0]}: give --price. Storage on Tinker: {storage}")
    print(f"total {money(dollars)} for tokens (prices of {PRICES_READ} or --price), and at most {storage}")


def _left(run: TrainingRun, state: TinkerState) -> tuple[int, int]:
    """The steps and the checkpoints that a run still needs."""
    if run.finished():
        return 0, 0
    saved = [step for step in run.saved_steps() if step > state.step or state.path is None]
    return run.total_steps - state.step, len(saved)


def lora_values(model: str, rank: int) -> int:
    """Values in an adapter of a base model, from its config.json. `base_checks.lora_values` needs the weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    hidden, heads, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    head = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * head, config.num_key_value_heads * head
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    return config.num_hidden_layers * rank * (attention + 3 * (hidden + inner))
