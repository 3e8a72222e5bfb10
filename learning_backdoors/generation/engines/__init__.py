"""Engines: requests go in, responses come out as soon as they are finished.

config.ENGINES is the registry. To add an engine NAME, write engines/NAME_engine.py with a class NameEngine that
follows `protocol.Engine`, and add NAME to config.ENGINES.
"""

import importlib

import config
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.engines.protocol import Engine
from learning_backdoors.models import devices


def open_engine(name: str, base_model: str, tokenizer, quantization: str = "none", **settings) -> Engine:
    """Load the base model into an engine.

    name: one of config.ENGINES, or `auto`. quantization: none, 8bit or 4bit. settings: of `protocol.Engine`. Raises
    UserError if the engine cannot run here.
    """
    return chosen_class(name, quantization)(base_model, tokenizer, quantization=quantization, **settings)


def chosen_class(name: str, quantization: str) -> type[Engine]:
    """The class of an engine that can run here. `auto` prints which one it chose and why."""
    if name != "tinker":  # it runs on a server, and from hosts without torch
        devices.keep_to_own_gpu()
    chosen, reason = choose_engine(name, quantization)
    if name == "auto" and devices.RANK == 0:
        print(f"engine: {chosen} ({reason})", flush=True)
    return engine_class(chosen)


def choose_engine(name: str, quantization: str) -> tuple[str, str]:
    """The name of an engine that can run here, and why it was chosen.

    `auto` takes the first of config.ENGINES that can run. Raises UserError if the named engine cannot.
    """
    obstacles = []
    for candidate in config.ENGINES if name == "auto" else (name,):
        obstacle = engine_class(candidate).obstacle(quantization)
        if obstacle is None:
            return candidate, "; ".join(obstacles) or "the first choice can run here"
        obstacles.append(f"the {candidate} engine cannot run: {obstacle}")
    raise UserError("; ".join(obstacles))


def engine_class(name: str) -> type[Engine]:
    module = importlib.import_module(f"{__name__}.{name}_engine")
    return getattr(module, name.title().replace("_", "") + "Engine")
