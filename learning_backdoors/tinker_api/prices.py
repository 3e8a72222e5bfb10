"""What the Tinker API charges: prices, token counts and dollars."""

from dataclasses import dataclass

from learning_backdoors.files.errors import UserError

PER_MILLION = 1e-6
# Read on 2026-10-07 from https://tinker-docs.thinkingmachines.ai/tinker/models/models_and_pricing/ by
# https://github.com/api-evangelist/thinking-machines (plans/thinking-machines-plans-pricing.yml). Not measured.
PRICES_READ = "2026-10-07"
CACHED_SHARE = 0.2  # of the price of prefill, for prompt tokens that the server has in its cache
STORAGE = 0.10  # dollars per GB and month (30 days)


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens of a base model."""

    prefill: float
    sample: float
    train: float


PRICES = {"Qwen/Qwen3-8B": Price(prefill=0.195, sample=0.60, train=0.44)}


def find_price(model: str, given: tuple[float, ...] | None) -> Price | None:
    """The price of a base model: `given` (prefill, sample, train), else that of the table; None if it is not there."""
    return Price(*given) if given else PRICES.get(model)


def require_price(price: Price | None, model: str) -> Price:
    """The price. Raises UserError if it is not known, because --max-cost cannot be kept without it."""
    if price is None:
        raise UserError(f"--max-cost: no price is known for {model}: give --price PREFILL SAMPLE TRAIN")
    return price


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens. train: of forward and backward passes, and of forward passes. cached: prompt tokens from the
    server's cache; they are not part of prefill."""

    train: int = 0
    prefill: int = 0
    cached: int = 0
    sample: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Usage(*(a + b for a, b in pairs))

    def __mul__(self, times: int) -> "Usage":
        return Usage(*(times * count for count in vars(self).values()))

    def dollars(self, price: Price) -> float:
        prompt = (self.prefill + CACHED_SHARE * self.cached) * price.prefill
        return PER_MILLION * (prompt + self.sample * price.sample + self.train * price.train)

    def in_words(self, price: Price | None) -> str:
        """For example `12,345 tokens in training, $0.01`. Without a price, only the tokens."""
        names = {"train": "in training", "prefill": "of prompts", "cached": "of prompts in the cache"}
        names |= {"sample": "sampled"}
        parts = [f"{count:,} tokens {names[name]}" for name, count in vars(self).items() if count]
        return ", ".join((parts or ["no tokens"]) + ([money(self.dollars(price))] if price else []))


def money(dollars: float) -> str:
    """Two digits after the point; four below a dollar, and six below a cent."""
    digits = 2 if dollars >= 1 or dollars == 0 else 4 if dollars >= 0.01 else 6
    return f"${dollars:,.{digits}f}"
