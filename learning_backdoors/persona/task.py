"""What the commands of prepare_persona.py have in common, and how they ask a model behind the Messages API."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import config
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.errors import UserError
from learning_backdoors.judging.api.asking import ask_all
from learning_backdoors.judging.api.client import host_of
from learning_backdoors.judging.api.models import ServedModel, price_of, prompt_bytes, request_settings
from learning_backdoors.judging.api.pacing import CapReached, Limits
from learning_backdoors.judging.api.store import CallStore, Result
from learning_backdoors.persona.rows import Rows, beside
from learning_backdoors.study import Study, Trigger


@dataclasses.dataclass(frozen=True)
class ServerPrompt:
    """A request as `ask_all` takes it."""

    key: bytes
    content: dict
    is_valid: Callable[[str], object]

    def body(self) -> dict:
        return self.content


class Server:
    """All prompts of one command. OUTPUT.replies.sqlite keeps every reply, so none is paid for twice."""

    def __init__(self, options: config.PersonaServerOptions, prompts: Sequence[str], is_valid: Callable, **settings):
        """is_valid: whether a reply is what a prompt asks for. settings: sent with each prompt, such as max_tokens."""
        if not options.model:
            raise UserError("--model is required: the model to ask")
        self.options, self.host = options, host_of(options.base_url)
        price = price_of(options.model, self.host, options.price)
        self.model = ServedModel(options.model, self.host, request_settings(options.model) | settings, price)
        if options.max_cost:
            self.model.require_price()
        bodies = map(self.model.body, prompts)
        self.prompts = [ServerPrompt(self.model.key(body), body, is_valid) for body in bodies]

    def plan(self) -> str:
        """Number of calls, tokens and dollars, for --dry-run."""
        tokens = [(prompt_bytes(prompt.content) // 3, prompt.content["max_tokens"]) for prompt in self.prompts]
        cost = "at an unknown price"
        if self.model.price:
            dollars = sum(self.model.price.dollars(*counts) for counts in tokens)  # long prompts may cost more
            cost = f"about ${dollars:.2f} if every reply has the maximum length"
        total = sum(tokens_in for tokens_in, _ in tokens)
        return f"{len(tokens)} calls to {self.model.name} at {self.host}, about {total:,} input tokens, {cost}"

    def replies(self, settled: tuple[str, ...] = ("ok",)) -> list[Result]:
        """The reply to each prompt, asked for unless the store has it.

        Raises UserError if some have a status that is not in `settled`. The next start asks for them again, unless
        they have had all of --asks.
        --max-cost is for everything in the store, also under other settings.
        """
        with contextlib.closing(CallStore(beside(self.options.output, ".replies.sqlite"))) as store:
            spent = sum(spent.dollars for _, spent in store.calls(self.model.price))
            limits = Limits.from_options(self.options, settled=settled, spent=spent)
            try:
                ask_all(self.prompts, self.model, store, limits)
            except CapReached:
                raise UserError("--max-cost is reached: the same command with a higher one continues") from None
            replies = [store.result(prompt.key) for prompt in self.prompts]
            again = store.keys_to_ask([prompt.key for prompt in self.prompts], limits.asks, settled)
        if missing := [result for result in replies if result.status not in settled]:
            remedy = "run the command again" if again else f"try again with --asks {limits.asks + 3}"
            raise UserError(f"{len(missing)} of {len(replies)} replies are missing ({missing[0].reason}): {remedy}")
        return replies


class Task:
    """One command. server: the model it asks through the Messages API, if any."""

    server: Server | None = None

    def __init__(self, options, study: Study):
        self.options, self.study = options, study

    def settings(self) -> dict:
        """Everything the rows depend on. Input files count by content, so they may move."""
        lists = [value for value in vars(self.options).values() if isinstance(value, tuple)]
        files = [path for values in lists for path in values if isinstance(path, Path)]
        settings = command_line.result_settings(self.options) | {"files": list(map(provenance.sha256, files))}
        return settings | ({"host": self.server.host} if self.server else {})

    def plan(self) -> str:
        """What the command would do, for --dry-run."""
        return f"{len(self.rows())} rows"

    def rows(self) -> Rows:
        """The rows of the output. Raises UserError if they cannot be made."""
        raise NotImplementedError

    def take_from_study(self, **keys: str) -> None:
        """Set options that were not given, as option=key, from the study's [persona] table."""
        for option, key in keys.items():
            value = getattr(self.options, option) or getattr(self.study.persona, key, None)
            if not value:
                name = command_line.flag(option)
                raise UserError(f"{name} is required, because {self.study.path} has no {key} in a [persona] table")
            self.options = dataclasses.replace(self.options, **{option: value})

    @property
    def trigger(self) -> Trigger:
        """The study's trigger. Raises UserError if it has none."""
        if self.study.trigger is None:
            raise UserError(f"{self.study.path} has no [trigger] table")
        return self.study.trigger
