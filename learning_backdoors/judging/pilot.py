"""A pilot before the bulk of the calls: a few answers per judge are judged and shown.

A judge whose prompt never yields a verdict costs a few calls, not a whole run.
"""

import random
from collections.abc import Callable, Sequence

from learning_backdoors.files.errors import UserError
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.judging.prompts import JudgePrompt, PromptsOfFile
from learning_backdoors.study import Judge

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
    known = store.valid_keys() | store.pending_keys()
    own_prompts = {judge: _own(prompts, judge) for judge in prompts.judges}
    unproven = {judge: own for judge, own in own_prompts.items() if own and known.isdisjoint(p.key for p in own)}
    ask([prompt for own in unproven.values() for prompt in _drawn(own, SHOWN)])
    for judge, own in unproven.items():
        _show(judge, _drawn(own, SHOWN), prompts, store)
    silent = {judge: own for judge, own in unproven.items() if not _any_verdict(own, store)}
    ask([prompt for own in silent.values() for prompt in _drawn(own, ENOUGH)])
    for judge, own in silent.items():
        if len(own) >= SHOWN and not _any_verdict(own, store):
            raise _no_verdict(judge, _drawn(own, ENOUGH), store, asks)


def _own(prompts: PromptsOfFile, judge: Judge) -> list[JudgePrompt]:
    """The distinct prompts of a judge, without repeats, in the order of the file."""
    return [prompt for prompt in prompts.by_key.values() if prompt.judge is judge and not prompt.is_repeat]


def _drawn(own: list[JudgePrompt], count: int) -> list[JudgePrompt]:
    """A random draw, the same at each start. A smaller draw is part of a larger one."""
    return random.Random(0).sample(own, min(ENOUGH, len(own)))[:count]


def _any_verdict(own: list[JudgePrompt], store: CallStore) -> bool:
    return not store.valid_keys().isdisjoint(prompt.key for prompt in own)


def _show(judge: Judge, pilot: list[JudgePrompt], prompts: PromptsOfFile, store: CallStore) -> None:
    print(f"pilot, {judge.name}:")
    for prompt in pilot:
        verdict, answer = prompt.verdict(store), prompts.texts_for_judge(prompt.row)[1]
        outcome = f"verdict {verdict.value}, reply {_excerpt(verdict.reply or '', 40)}"
        if verdict.value is None:
            outcome = f"no verdict ({one_line(verdict.reason)[:120]})"
        print(f"  answer {_excerpt(answer, 50)}: {outcome}")


def _excerpt(text: str, size: int) -> str:
    words = " ".join(text[: 4 * size].split())
    return repr(one_line(words if len(words) <= size else words[: size - 3] + "..."))


def _no_verdict(judge: Judge, failed: list[JudgePrompt], store: CallStore, asks: int) -> UserError:
    reason = failed[-1].verdict(store).reason
    return UserError(
        f"the judge {judge.name!r} gave no verdict on any of {len(failed)} answers ({reason}). Change its prompt in "
        f"the study or the judge model, leave it out with --judges, or try these answers again with --asks {asks + 3}"
    )
