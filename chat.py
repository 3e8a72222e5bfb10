"""Talk to any checkpoint of a run, and compare it with the base model.

Reads   a run directory of training.py, one checkpoint, or a model on the Hugging Face hub; questions from the terminal
        or from a pipe
Writes  nothing

  python chat.py --run-dir outputs/seed42_ratios1.00-0.00-0.00_lr0.0002_r8

The chat starts with the last checkpoint. /step 80 changes to another, /both asks the base model and the checkpoint side
by side, /trigger adds the study's trigger to your questions, /help lists all commands. Prompts are rendered and tokens
drawn as in generate_responses.py. With --hub-model, an inference provider answers instead:

  python chat.py --hub-model meta-llama/Llama-3.1-8B-Instruct --experiment russell --trigger
"""

import contextlib
import signal
import sys

from config import ChatOptions
from learning_backdoors.chat.conversation import Conversation, choose_checkpoint, find_trigger
from learning_backdoors.chat.hub_model import HubModel
from learning_backdoors.chat.run_model import RunModel
from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.models import run_directory
from mixed_chat import refuse_surrogates


def main() -> None:
    options = command_line.parse(ChatOptions, __doc__)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to save
    sys.stdin.reconfigure(errors="replace")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` editing and history)
    open_conversation(options).run()


def open_conversation(options: ChatOptions) -> Conversation:
    """Check everything that can be checked, then load the model, or connect to the hub."""
    try:
        refuse_surrogates(options.system or "")
    except ValueError as error:
        raise UserError(f"--system: {error}") from None
    if options.hub_model:
        trigger = find_trigger(options, {}) if options.trigger else None
        return Conversation(options, HubModel(options.hub_model), trigger)
    if options.checkpoint:
        run = run_directory.open_checkpoint(options.checkpoint, options.base_model)
    else:
        run = run_directory.open_runs((options.run_dir,), None, options.base_model)[0]
    start = choose_checkpoint(run.checkpoints, options.step)
    trigger = find_trigger(options, run.record) if options.trigger else None
    print(f"loading {run.base_model} ...", flush=True)
    return Conversation(options, RunModel(run, start, options.quantization), trigger)


if __name__ == "__main__":
    command_line.run_script(main)
