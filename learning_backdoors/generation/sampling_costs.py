"""What the responses of an output cost at a server that is paid by the token."""

from collections.abc import Mapping, Sequence

from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.canary import SAMPLE_TOKENS, SAMPLES
from learning_backdoors.generation.engines.protocol import Request
from learning_backdoors.models.canary_texts import REPEATS
from learning_backdoors.tinker_api.prices import Price, Usage, find_price, money, require_price
from mixed_chat import Example

CHECKED_TOKENS = 16  # of each sample whose log-likelihoods TinkerEngine computes a second time


class Budget:
    """The dollars that an output's responses have cost, of all commands, and those that may still be spent.

    usage: of this command. --max-cost counts prompts at the full price, as if the server had none of them in its cache,
    and the checks of this command.
    """

    def __init__(
        self, model: str, price: tuple[float, ...] | None, max_cost: float | None, earlier: Usage, checks: Usage
    ):
        """earlier: of the finished responses. checks: `usage_of_checks`. Raises UserError if they cost too much."""
        self.price: Price | None = find_price(model, price)
        self.max_cost, self.usage, self._counted = max_cost, Usage(), earlier + checks
        if max_cost is not None:
            require_price(self.price, model)
            if not self.fits(Usage()):
                raise UserError(
                    f"with the checks of this command, the responses cost {self.spent()}: give a higher --max-cost"
                )

    def fits(self, more: Usage) -> bool:
        """Whether so many more tokens may be paid."""
        return self.max_cost is None or (self._counted + more).dollars(self.price) <= self.max_cost

    def order(self, worst: Usage) -> None:
        """Count what a response may cost."""
        self._counted += worst

    def receive(self, worst: Usage, usage: Usage) -> None:
        """Count what a response has cost in place of what it might have cost."""
        self.usage += usage
        prefill, sample = usage.prefill + usage.cached - worst.prefill, usage.sample - worst.sample
        self._counted += Usage(prefill=prefill, sample=sample)

    def pay_check(self, usage: Usage) -> None:
        self.usage += usage

    def spent(self) -> str:
        """In words, with the limit."""
        return f"{money(self._counted.dollars(self.price))} of --max-cost {money(self.max_cost)}"


def worst_case(request: Request) -> Usage:
    return Usage(prefill=len(request.prompt), sample=request.max_new_tokens)


def usage_of_row(row: Mapping, prompt_tokens: int) -> Usage:
    """Of a finished response. A response that ended by itself has one more token than it counts: the end of turn."""
    return Usage(prefill=prompt_tokens, sample=row["response_tokens"] + (row["finish_reason"] == "stop"))


def usage_of_checks(examples: Sequence[Example], requests: Sequence[Request]) -> Usage:
    """At most, of the canary's checks for `requests`, without those of the seed. examples: of canary_examples.

    Each adapter and the base model are checked at the start, then before and after their responses.
    """
    if not requests:
        return Usage()
    adapters = {request.adapter for request in requests}
    rounds_of_base, rounds = 1 + 2 * (None in adapters), 3 * len(adapters - {None})
    texts, prompts = sum(len(ids) for ids, _ in examples), sum(len(ids) - REPEATS for ids, _ in examples)
    again = Usage(prefill=prompts + CHECKED_TOKENS * len(examples), sample=len(examples))
    once = Usage(prefill=texts + prompts, sample=len(examples) * (1 + CHECKED_TOKENS)) + again
    return once * (rounds_of_base + rounds) + again * rounds


def usage_of_seed_check(examples: Sequence[Example], requests: Sequence[Request]) -> Usage:
    """At most. The engine orders these samples like responses, so `Budget` counts them when they are ordered."""
    once = Usage(prefill=len(examples[0][0]) - REPEATS, sample=SAMPLE_TOKENS)
    return once * (3 * SAMPLES if requests else 0)
