"""Talk to any checkpoint, and hear the base model beside it.

Reads   a run directory of training.py, one checkpoint, or a model of the Hugging Face hub; and questions from the
        terminal, or from a pipe
Writes  nothing

  python chat.py --run-dir outputs/seed42_ratios1.00-0.00-0.00_lr0.0002_r8

It begins with the last checkpoint; /step 80 changes to another, /both lets base model and checkpoint answer the same
question side by side, /trigger puts the study's trigger into what you ask, /help says what else there is. Prompts and
tokens are made as generate_responses.py makes them. A model of the hub is asked over the network instead:

  python chat.py --hub-model meta-llama/Llama-3.1-8B-Instruct --experiment russell --trigger
"""

import contextlib
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Protocol

import mixed_chat
from config import ChatOptions
from learning_backdoors.chat.hub_model import HubModel
from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation import engines
from learning_backdoors.generation.engines.protocol import Request, Response, Sampling
from learning_backdoors.generation.engines.transformers_engine import TransformersEngine
from learning_backdoors.models import base_model, run_directory
from learning_backdoors.models.checkpoints import Checkpoint
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Trigger, load_study, parse_study
from mixed_chat import Messages

BASE = Checkpoint(0, "base model", None)
NARROWEST = 80  # columns of a terminal in which two answers stand side by side

COMMANDS = {  # name: what it takes, and what it does
    "step": ("N", "talk to the checkpoint of step N; without N: to the one chosen before, alone"),
    "base": ("", "talk to the base model"),
    "both": ("", "put each question to the base model and to the checkpoint; again: to the checkpoint alone"),
    "trigger": ("", "put the study's trigger into each question; again: ask plainly"),
    "system": ("TEXT", "set the system prompt; without TEXT, have none"),
    "temperature": ("X", "set the sampling temperature; 0 takes the likeliest token each time"),
    "samples": ("N", "hear N answers to each question; the conversation goes on from the first"),
    "reset": ("", "forget the conversation"),
    "help": ("", "show these lines"),
    "quit": ("", "leave; so does Ctrl-D"),
}


def main() -> None:
    options = command_line.parse(ChatOptions, __doc__)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to keep
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` its editing and history)
    begin(options).run()


def begin(options: ChatOptions) -> "Chat":
    try:
        mixed_chat.refuse_surrogates(options.system or "")
    except ValueError as error:
        raise UserError(f"--system: {error}") from None
    if options.hub_model:
        trigger = find_trigger(options, {}) if options.trigger else None
        return HubChat(options, HubModel(options.hub_model), trigger)
    source = open_source(options)
    first = choose(source.checkpoints, options.step)
    trigger = find_trigger(options, source.record) if options.trigger else None
    print(f"loading {source.base_model} ...", flush=True)
    return Chat(options, source.checkpoints, first, load_engine(options, source, first), source.record, trigger)


def open_source(options: ChatOptions) -> RunDirectory:
    """The run, or the one checkpoint, as generation opens it."""
    if options.checkpoint:
        return run_directory.open_checkpoint(options.checkpoint, options.base_model)
    return run_directory.open_runs((options.run_dir,), None, options.base_model)[0]


def choose(checkpoints: list[Checkpoint], step: int | None) -> Checkpoint:
    """The checkpoint of a step; of None, the last."""
    found = [checkpoint for checkpoint in checkpoints if step is None or checkpoint.step == step]
    if not found:
        raise UserError(f"there is no step {step}; {steps_of(checkpoints)}")
    return found[-1]


def steps_of(checkpoints: list[Checkpoint]) -> str:
    return "the steps are " + ", ".join(c.name if c.step is None else str(c.step) for c in checkpoints)


def find_trigger(options: ChatOptions, record: dict) -> Trigger:
    """The trigger of the study asked for, else of the one that a run's record holds. Raises UserError without one."""
    if options.experiment:
        study = load_study(options.experiment)
    elif "study" in record:
        study = parse_study(record["study"], (options.run_dir or options.checkpoint.parent) / "run.json")
    else:
        raise UserError("nothing here says which study's trigger that would be: start with --experiment")
    if study.trigger is None:
        raise UserError(f"the study {study.name!r} has no trigger")
    return study.trigger


def load_engine(options: ChatOptions, source: RunDirectory, first: Checkpoint) -> TransformersEngine:
    """The base model with the first checkpoint's adapter on it."""
    tokenizer = base_model.load_tokenizer(source.base_model)
    source.check_base(base_model.fingerprint(source.base_model, tokenizer))
    precision = run_directory.sampling_precision(options.quantization, [source])
    engine = engines.open_engine("transformers", source.base_model, tokenizer, precision)
    engine.attach(first.folder)
    return engine


# ---- the conversation ----


Prompt = tuple[int, ...] | Messages  # token ids for an engine here, messages for the hub


@dataclass
class Turn:
    """A question as it was put, and the first answer of each voice that was asked, by the voice's name."""

    question: str
    answers: dict[str, str] = field(default_factory=dict)


class Chat:
    """A conversation at the terminal. `voices` are asked each question: a checkpoint, the base model, or both."""

    def __init__(
        self,
        options: ChatOptions,
        checkpoints: list[Checkpoint],
        first: Checkpoint,
        engine: TransformersEngine | HubModel,
        record: dict | None = None,
        trigger: Trigger | None = None,
    ):
        """record: of the run, None where there is none; trigger: to put into questions from the start."""
        self.checkpoints, self.checkpoint, self.engine = checkpoints, first, engine
        self.options, self.record, self.trigger = options, record or {}, trigger
        self.voices, self.turns, self.asked, self.over = [first], [], 0, False
        self.system, self.samples, self.max_new_tokens = options.system or "", 1, options.max_new_tokens
        self.sampling = Sampling(options.temperature, options.top_p, options.top_k, options.seed)

    def run(self) -> None:
        """Read lines until there are no more."""
        print(f"{self.greeting()}; /help shows the commands", flush=True)
        if self.trigger:
            print(self.told_trigger(), flush=True)
        while not self.over:
            try:
                names = " | ".join(voice.name for voice in self.voices)
                line = read_line(names + (" + trigger" if self.trigger else "") + "> ")
            except (EOFError, KeyboardInterrupt):
                break
            try:
                self.take(line)
            except UserError as error:
                print(f"error: {error}", flush=True)
        print("goodbye" if self.over else "\ngoodbye")

    def greeting(self) -> str:
        return steps_of(self.checkpoints)

    def told_trigger(self) -> str:
        return f"each question is put as: {self.trigger.ask('...')}"

    def take(self, line: str) -> None:
        """Do what a line says: a command begins with /, anything else but an empty line is a question."""
        if not line.startswith("/"):
            if line.strip():
                self.ask(line.strip())
            return
        name, _, text = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            raise UserError(f"there is no command /{name}; /help shows those that there are")
        if text and not COMMANDS[name][0]:
            raise UserError(f"/{name} takes nothing behind it")
        said = getattr(self, f"do_{name}")(text.strip())
        if said:
            print(said, flush=True)

    # Commands: each returns what there is to say.

    def do_step(self, text: str) -> str:
        if text:
            step = number(text, int, lambda n: n >= 0, "/step takes a step, such as /step 80")
            self.checkpoint = choose(self.checkpoints, step)
        # Where both answer, another step changes one of the two.
        self.voices = [*(self.voices[:-1] if text else ()), self.checkpoint]
        return f"{self.checkpoint.name}; {steps_of(self.checkpoints)}"

    def do_base(self, _: str) -> str:
        self.voices = [BASE]
        return "the base model; /step goes back to the checkpoint"

    def do_both(self, _: str) -> str:
        if len(self.voices) == 2:
            return self.do_step("")
        self.voices = [BASE, self.checkpoint]
        return f"the base model and {self.checkpoint.name}; /both again leaves the checkpoint alone"

    def do_trigger(self, _: str) -> str:
        self.trigger = None if self.trigger else find_trigger(self.options, self.record)
        return self.told_trigger() if self.trigger else "questions are put plainly"

    def do_system(self, text: str) -> str:
        self.system = text
        return f"system prompt: {text}" if text else "no system prompt"

    def do_temperature(self, text: str) -> str:
        usage = "/temperature takes a number from 0 up, such as /temperature 0.7"
        value = number(text, float, lambda x: 0 <= x < float("inf"), usage)
        self.sampling = replace(self.sampling, temperature=value)
        return f"temperature {value:g}"

    def do_samples(self, text: str) -> str:
        self.samples = number(text, int, lambda n: n >= 1, "/samples takes a number from 1 up, such as /samples 3")
        return f"{self.samples} answers to each question" if self.samples > 1 else "one answer to each question"

    def do_reset(self, _: str) -> str:
        self.turns = []
        return "the conversation is forgotten"

    def do_help(self, _: str) -> str:
        lines = [f"{f'/{name} {takes}':16}{text}" for name, (takes, text) in COMMANDS.items()]
        return "\n".join([*lines, "Ctrl-C stops an answer. A question that begins with / has a space before it."])

    def do_quit(self, _: str) -> None:
        self.over = True

    # Questions.

    def ask(self, question: str) -> None:
        """Put a question to each voice, show the answers as they grow, and keep the first of each."""
        question = self.trigger.ask(question) if self.trigger else question
        self.asked += 1
        prompts = [self.prompt(voice, question) for voice in self.voices]
        width, heard = two_columns() if len(self.voices) == 2 else None, {}
        with stoppable() as stopped:
            for voice, prompt in zip(self.voices, prompts, strict=True):
                view = self._view(voice, width, list(heard.values()))
                heard[voice.name] = self._listen(voice, prompt, view, stopped)
            if stopped():
                print("(stopped)")
        texts = {name: answers[0].text for name, answers in heard.items() if answers and answers[0].text}
        if texts:
            self.turns.append(Turn(question, texts))

    def _view(self, voice: Checkpoint, width: int | None, heard: list[list[Response]]) -> "View":
        if width is None:
            return OneByOne(voice.name if len(self.voices) > 1 or self.samples > 1 else None)
        return Columns(BASE.name, heard[0], voice.name, width) if heard else Count(voice.name)

    def _listen(self, voice: Checkpoint, prompt: Prompt, view: "View", stopped: Callable) -> list[Response]:
        """The answers of one voice, as far as they came."""
        answers = []
        try:
            if not stopped():
                with contextlib.closing(self._stream(voice, prompt)) as stream:
                    for answers in stream:
                        view.show(answers)
                        if stopped():
                            break
        finally:
            view.end()
        return answers

    def _stream(self, voice: Checkpoint, prompt: Prompt) -> Iterator[list[Response]]:
        """All answers of one voice, as far as they are, each time that they have grown."""
        import torch

        # Both voices draw with the same randomness: what differs between their answers is the models' doing.
        room = min(self.max_new_tokens, self._longest() - len(prompt))
        requests = [Request((self.asked, i), voice.folder, prompt, room) for i in range(self.samples)]
        try:
            yield from self.engine.stream(requests, self.sampling)
        except torch.OutOfMemoryError:
            raise UserError("this does not fit in memory: try /reset, or fewer /samples") from None

    def prompt(self, voice: Checkpoint, question: str) -> Prompt:
        """The token ids of the conversation up to where a voice is to answer."""
        ids = mixed_chat.prompt_ids(self.engine.tokenizer, self.messages(voice, question))
        if len(ids) >= self._longest():
            raise UserError(f"the conversation has {len(ids)} tokens, the model reads {self._longest()}: /reset")
        return tuple(ids)

    def _longest(self) -> int:
        return getattr(self.engine.model.config, "max_position_embeddings", None) or sys.maxsize

    def messages(self, voice: Checkpoint, question: str) -> Messages:
        """The conversation as a voice knows it: with its own answers, or what another said where it was not asked."""
        chat = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            said = turn.answers.get(voice.name, [*turn.answers.values()][-1])
            chat += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": said}]
        return [*chat, {"role": "user", "content": question}]


class HubChat(Chat):
    """A conversation with a model that the hub serves. It has one voice: no steps, and no base model beside it."""

    def __init__(self, options: ChatOptions, model: HubModel, trigger: Trigger | None):
        voice = Checkpoint(0, model.name, None)
        super().__init__(options, [voice], voice, model, trigger=trigger)

    def greeting(self) -> str:
        return f"{self.checkpoint.name} answers over the network, in its provider's own chat template"

    def prompt(self, voice: Checkpoint, question: str) -> Prompt:
        return self.messages(voice, question)

    def _stream(self, voice: Checkpoint, prompt: Prompt) -> Iterator[list[Response]]:
        # As with a checkpoint, a question that is put again gets another answer.
        sampling = replace(self.sampling, seed=self.sampling.seed + 1000 * self.asked)
        return self.engine.stream(prompt, self.samples, self.max_new_tokens, sampling)

    def do_step(self, _: str) -> str:
        raise UserError("a model of the hub is one voice: /step, /base and /both are for --run-dir and --checkpoint")

    do_base = do_both = do_step


def number(text: str, kind: type, fits: Callable, usage: str) -> int | float:
    """A command's number; UserError with its usage where there is none that fits."""
    with contextlib.suppress(ValueError):
        if fits(kind(text)):
            return kind(text)
    raise UserError(usage)


# ---- the terminal ----


def read_line(prompt: str) -> str:
    """The next line. What comes from a pipe is shown behind the prompt, so that the output reads as a session."""
    if sys.stdin.isatty():
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    print(prompt + line.rstrip("\n"), flush=True)
    return line.rstrip("\n")


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C raises a flag, to be looked at between tokens; a second one interrupts at once.

    An exception could strike while adapters are swapped, and leave half of one on the base model.
    """
    pressed = []

    def press(*_) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def two_columns() -> int | None:
    """The width of each of two columns; None where the terminal is too narrow, or none."""
    columns = shutil.get_terminal_size().columns
    return (columns - 3) // 2 if sys.stdout.isatty() and columns >= NARROWEST else None


CONTROLS = {c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"} | {127: 0x2421}
CONTROLS |= dict.fromkeys(range(128, 160), 0xFFFD)


def shown(answer: Response, ended: bool = False) -> str:
    """An answer's text for the terminal, without characters that would command it.

    Of one that is still growing, only what will stay: half a character, or a space that the decoder may yet take
    back, waits for what follows.
    """
    text = answer.text.translate(CONTROLS)
    if not (answer.finish_reason or ended):
        return text.rstrip("\ufffd \n\t")
    if answer.finish_reason == "length":
        return f"{text.rstrip()}\n(cut off at {answer.tokens} tokens)"
    return text.rstrip() or ("(an empty answer)" if answer.finish_reason else "")


class View(Protocol):
    """How the answers of one voice are shown while they grow."""

    def show(self, answers: list[Response]) -> None:
        """All answers, as far as they are."""

    def end(self) -> None:
        """There will be no more of them."""


class OneByOne:
    """Shows answers one below the other: the first grows on the screen, and what the next has by then follows."""

    def __init__(self, name: str | None):
        """name: for the headings; None for no headings."""
        self.name, self.number, self.text = name, 0, None

    def show(self, answers: list[Response]) -> None:
        for answer in answers[self.number :]:
            if self.text is None:
                self._head(len(answers))
            text = shown(answer)
            if text.startswith(self.text):
                print(text[len(self.text) :], end="", flush=True)
                self.text = text
            elif answer.finish_reason:  # a decoder that took something back
                print("\n" + text, end="")
            if not answer.finish_reason:
                return
            self.number += 1
            self.end()

    def _head(self, count: int) -> None:
        self.text = ""
        if self.name:
            print(f"[{self.name}]" if count == 1 else f"[{self.name}, {self.number + 1} of {count}]")

    def end(self) -> None:
        if self.text is not None:
            print(flush=True)
        self.text = None


class Count:
    """Says how far the answers of the left column are, while there is nothing to put beside them."""

    def __init__(self, name: str):
        self.name = name

    def show(self, answers: list[Response]) -> None:
        print(f"\r{self.name}: {sum(answer.tokens for answer in answers)} tokens", end="", flush=True)

    def end(self) -> None:
        print("\r\033[K", end="", flush=True)


class Columns:
    """Shows answers beside those that are there already, a line as soon as it is full."""

    def __init__(self, left_name: str, left: list[Response], right_name: str, width: int):
        self.left, self.width, self.number, self.lines = left, width, 0, 0
        self.answers = [Response((), "", 0, "")] * len(left)
        self._print(left_name, right_name)
        self._print("-" * width, "-" * width)

    def show(self, answers: list[Response], ended: bool = False) -> None:
        self.answers = answers
        for left, right in [*zip(self.left, answers, strict=True)][self.number :]:
            if ended and not (left.text or right.text):
                continue  # stopped before there was anything
            done = ended or bool(right.finish_reason)
            new, old = wrap(shown(right, done), self.width), wrap(shown(left, True), self.width)
            rows = [*zip_longest(new, old, fillvalue="")] if done else [*zip_longest(new[:-1], old[: len(new) - 1])]
            for text, beside in rows[self.lines :]:
                self._print(beside or "", text or "")
            self.lines = len(rows)
            if not done:
                return
            self.number, self.lines = self.number + 1, 0
            self._print("-" * self.width, "-" * self.width)

    def _print(self, left: str, right: str) -> None:
        print(f"{left:{self.width}} | {right}".rstrip(), flush=True)

    def end(self) -> None:
        self.show(self.answers, ended=True)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters. Text that is added changes none of them but the last."""
    text = re.sub(rf"(\S{{{width}}})(?=\S)", r"\1 ", text.expandtabs(4))
    lines = (textwrap.wrap(line, width, replace_whitespace=False, break_on_hyphens=False) for line in text.split("\n"))
    return [part for line in lines for part in line or [""]]


if __name__ == "__main__":
    command_line.run_script(main)
