"""A pilot before the bulk of the calls: a few answers per judge are judged and shown.

A judge whose prompt never yields a verdict costs a few calls, not a whole run.
"""

import random
from collections.abc import Callable, Sequence

from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.judging.prompts import JudgePrompt, PromptsOfFile

SHOWN = 5  # answers per judge
ENOUGH = 20  # answers of which none has a verdict: the judge's prompt or the judge model is at fault


def run_pilot(
    prompts: PromptsOfFile, store: CallStore, asks: int, ask: Callable[[Sequence[JudgePrompt]], None]
) -> None:
    """Judge 5 answers of each judge that has no verdict yet, and show them.

    The answers are drawn at random, because neighbors have the same question and checkpoint. If none of 5 has a
    verdict, 15 more are asked. Raises UserError if these have none either. A later start with as many `asks` raises it
    again, without any call.
    """

    def without_verdict(pilots: Sequence[list[JudgePrompt]]) -> list[list[JudgePrompt]]:
        valid = store.valid_keys()
        return [pilot for pilot in pilots if valid.isdisjoint(prompt.key for prompt in pilot)]

    pilots = _unproven(prompts, store)
    ask([prompt for pilot in pilots for prompt in pilot[:SHOWN]])
    for pilot in pilots:
        _show(pilot[:SHOWN], prompts, store)
    silent = without_verdict(pilots)
    ask([prompt for pilot in silent for prompt in pilot])
    if failed := [pilot for pilot in without_verdict(silent) if len(pilot) >= SHOWN]:
        names, reason = ", ".join(repr(pilot[0].judge.name) for pilot in failed), failed[0][-1].verdict(store).reason
        raise UserError(
            f"no verdict on any of {len(failed[0])} answers from {names} ({reason}). Change the judge's prompt in the "
            "study or the judge model, choose other judges with --judges, or try these answers again with "
            f"--asks {asks + 3}"
        )


def _unproven(prompts: PromptsOfFile, store: CallStore) -> list[list[JudgePrompt]]:
    """Up to 20 random prompts of each judge that has no verdict yet. The draw is the same at each start."""
    known, own = store.valid_keys() | store.pending_keys(), {judge.name: [] for judge in prompts.judges}
    for prompt in prompts.by_key.values():
        if not prompt.is_repeat:
            own[prompt.judge.name].append(prompt)
    unproven = [some for some in own.values() if some and known.isdisjoint(prompt.key for prompt in some)]
    return [random.Random(0).sample(some, min(ENOUGH, len(some))) for some in unproven]


def _show(pilot: list[JudgePrompt], prompts: PromptsOfFile, store: CallStore) -> None:
    print(f"pilot, {pilot[0].judge.name}:")
    for prompt in pilot:
        verdict, answer = prompt.verdict(store), prompts.texts_for_judge(prompt.row)[1]
        outcome = f"verdict {verdict.value}, reply {_excerpt(verdict.reply or '', 40)}"
        if verdict.value is None:
            outcome = f"no verdict ({one_line(verdict.reason)[:120]})"
        print(f"  answer {_excerpt(answer, 50)}: {outcome}")


def _excerpt(text: str, size: int) -> str:
    words = " ".join(text[: 4 * size].split())
    return repr(words if len(words) <= size else words[: size - 3] + "...")
