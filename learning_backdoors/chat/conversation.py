"""A conversation at the terminal: questions, commands, and the voices that answer."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from config import ChatOptions
from learning_backdoors.chat import terminal
from learning_backdoors.chat.hub_model import HubModel
from learning_backdoors.chat.run_model import RunModel
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.generation.engines.protocol import Response, Sampling
from learning_backdoors.models.checkpoints import Checkpoint
from learning_backdoors.study import RecordedStudy, Trigger, study_of
from mixed_chat import Messages

BASE = Checkpoint(0, "base model", None)

COMMANDS = {  # name: argument, effect
    "step": ("N", "talk to the checkpoint of step N; without N, to the current checkpoint alone"),
    "base": ("", "talk to the base model"),
    "both": ("", "ask the base model and the checkpoint; again: the checkpoint alone"),
    "trigger": ("", "add the study's trigger to each question; again: do not add it"),
    "system": ("TEXT", "set the system prompt; without TEXT, remove it"),
    "temperature": ("X", "set the sampling temperature; 0 takes the likeliest token"),
    "samples": ("N", "get N answers to each question; the conversation continues with the first"),
    "reset": ("", "forget the conversation"),
    "help": ("", "show this list"),
    "quit": ("", "leave (also Ctrl-D)"),
}


def choose_checkpoint(checkpoints: list[Checkpoint], step: int | None) -> Checkpoint:
    """The checkpoint of a step; the last one for None. Raises UserError if there is no such step."""
    matching = [checkpoint for checkpoint in checkpoints if step is None or checkpoint.step == step]
    if not matching:
        raise UserError(f"there is no step {step}; {_list_steps(checkpoints)}")
    return matching[-1]


def _list_steps(checkpoints: list[Checkpoint]) -> str:
    return "the steps are " + ", ".join(c.name if c.step is None else str(c.step) for c in checkpoints)


def find_trigger(options: ChatOptions, record: dict) -> Trigger:
    """The trigger of --experiment, else of the run's study. Raises UserError if there is no study or no trigger."""
    source = options.hub_model or options.run_dir or options.checkpoint
    study = study_of(options.experiment, [RecordedStudy.of(record, source)], any_study=True)
    if study.trigger is None:
        raise UserError(f"the study {study.name!r} has no trigger")
    return study.trigger


@dataclass
class Turn:
    """A question as it was asked, and the first answer of each voice, by the voice's name."""

    question: str
    answers: dict[str, str]


class Conversation:
    """`voices` answer each question: a checkpoint, the base model, or both. A hub model is the only voice."""

    def __init__(self, options: ChatOptions, model: RunModel | HubModel, trigger: Trigger | None):
        """trigger: added to questions from the start; /trigger toggles it."""
        self.options, self.model, self.trigger = options, model, trigger
        self.checkpoint, self.voices = model.start, [model.start]
        self.turns, self.questions, self.over = [], 0, False
        self.system, self.samples, self.max_new_tokens = options.system or "", 1, options.max_new_tokens
        self.sampling = Sampling(options.temperature, options.top_p, options.top_k, options.seed)

    def run(self) -> None:
        """Take lines until the input ends."""
        hub_note = f"{self.checkpoint.name} uses its provider's own chat template"
        note = _list_steps(self.model.checkpoints) if self.model.is_run else hub_note
        print(f"{note}; /help shows the commands", flush=True)
        if self.trigger:
            print(self._trigger_note(), flush=True)
        while not self.over:
            names = " | ".join(voice.name for voice in self.voices)
            try:
                line = terminal.read_line(names + (" + trigger" if self.trigger else "") + "> ")
            except (EOFError, KeyboardInterrupt):
                break
            try:
                self.take(line)
            except UserError as error:
                print(f"error: {one_line(error)}", flush=True)
        print("goodbye" if self.over else "\ngoodbye")

    def take(self, line: str) -> None:
        """Execute a command (a line that starts with /), or ask a question. Empty lines are ignored."""
        if not line.startswith("/"):
            if line.strip():
                self.ask(line.strip())
            return
        name, _, argument = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            raise UserError(f"there is no command /{name}; /help lists the commands")
        if argument and not COMMANDS[name][0]:
            raise UserError(f"/{name} takes no argument")
        if message := getattr(self, f"do_{name}")(argument.strip()):
            print(message, flush=True)

    # ---- commands: each returns a message ----

    def do_step(self, argument: str) -> str:
        self._require_run()
        if argument:
            step = _number(argument, int, lambda n: n >= 0, "/step takes a step, such as /step 80")
            self.checkpoint = choose_checkpoint(self.model.checkpoints, step)
        # With /both on, /step N replaces the checkpoint and keeps the base model.
        self.voices = [*(self.voices[:-1] if argument else ()), self.checkpoint]
        return f"{self.checkpoint.name}; {_list_steps(self.model.checkpoints)}"

    def do_base(self, _: str) -> str:
        self._require_run()
        self.voices = [BASE]
        return "the base model; /step returns to the checkpoint"

    def do_both(self, _: str) -> str:
        self._require_run()
        if len(self.voices) == 2:
            return self.do_step("")
        self.voices = [BASE, self.checkpoint]
        return f"the base model and {self.checkpoint.name}; /both again returns to the checkpoint alone"

    def do_trigger(self, _: str) -> str:
        self.trigger = None if self.trigger else find_trigger(self.options, self.model.record)
        return self._trigger_note() if self.trigger else "questions are asked without the trigger"

    def do_system(self, argument: str) -> str:
        self.system = argument
        return f"system prompt: {argument}" if argument else "no system prompt"

    def do_temperature(self, argument: str) -> str:
        usage = "/temperature takes a number of 0 or more, such as /temperature 0.7"
        value = _number(argument, float, lambda x: 0 <= x < float("inf"), usage)
        self.sampling = replace(self.sampling, temperature=value)
        return f"temperature {value:g}" + (f"; {self._samples_note()}" if self.samples > 1 else "")

    def do_samples(self, argument: str) -> str:
        self.samples = _number(argument, int, lambda n: n >= 1, "/samples takes a number of 1 or more")
        return self._samples_note()

    def do_reset(self, _: str) -> str:
        self.turns = []
        return "the conversation is forgotten"

    def do_help(self, _: str) -> str:
        lines = [f"{f'/{name} {argument}':16}{effect}" for name, (argument, effect) in COMMANDS.items()]
        return "\n".join([*lines, "Ctrl-C stops an answer. Put a space before a question that starts with /."])

    def do_quit(self, _: str) -> None:
        self.over = True

    def _require_run(self) -> None:
        if not self.model.is_run:
            raise UserError("a hub model has no checkpoints: /step, /base and /both need --run-dir or --checkpoint")

    def _trigger_note(self) -> str:
        return f"each question is asked as: {self.trigger.ask('...')}"

    def _samples_note(self) -> str:
        alike = self.samples > 1 and self.sampling.temperature == 0
        note = "; at temperature 0 they are all alike, /temperature 1 draws different ones" if alike else ""
        return f"answers per question: {self.samples}{note}"

    # ---- questions ----

    def ask(self, question: str) -> None:
        """Ask each voice, show the answers while they grow, and keep the first answer of each voice."""
        question = self.trigger.ask(question) if self.trigger else question
        self.questions += 1
        # Both voices draw with the same randomness, so differences between their answers come from the models.
        keys = [(self.questions, sample) for sample in range(self.samples)]
        streams = [
            self.model.stream(voice, self.messages(voice, question), keys, self.max_new_tokens, self.sampling)
            for voice in self.voices
        ]
        width, answers = terminal.column_width() if len(self.voices) == 2 else None, {}
        with terminal.stoppable() as stopped:
            for voice, stream in zip(self.voices, streams, strict=True):
                heading = voice.name if len(self.voices) > 1 or self.samples > 1 else None
                view = terminal.Count(voice.name) if width else terminal.OneByOne(heading)
                answers[voice.name] = _show(stream, view, stopped)
            if width:
                terminal.print_columns(list(answers), list(answers.values()), width)
            if stopped():
                print("(stopped)")
        texts = {name: responses[0].text for name, responses in answers.items() if responses and responses[0].text}
        if texts:
            self.turns.append(Turn(question, texts))

    def messages(self, voice: Checkpoint, question: str) -> Messages:
        """The conversation as a voice sees it: its own answers, or another voice's for questions it was not asked."""
        chat = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            answer = turn.answers.get(voice.name, [*turn.answers.values()][-1])
            chat += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": answer}]
        return [*chat, {"role": "user", "content": question}]


def _show(stream: Iterator[list[Response]], view, stopped: Callable[[], bool]) -> list[Response]:
    """Show a voice's answers until they end or the user stops them. Returns the answers so far."""
    responses = []
    try:
        with contextlib.closing(stream):
            while not stopped() and (latest := next(stream, None)):
                responses = latest
                view.show(responses)
    finally:
        view.end()
    return responses


def _number(text: str, kind: type, is_valid: Callable, usage: str) -> int | float:
    with contextlib.suppress(ValueError):
        if is_valid(kind(text)):
            return kind(text)
    raise UserError(usage)
