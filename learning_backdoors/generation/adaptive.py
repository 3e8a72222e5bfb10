"""Adaptive sampling: few responses first, then more where the rate of a run crosses a level.

Each round plans responses from the verdicts on those of earlier rounds. Together, the rounds make a part of the full
design, in which every checkpoint has `--samples` responses per question and condition.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from learning_backdoors.files import parquet
from learning_backdoors.files.errors import UserError
from learning_backdoors.generation.plan import KEY_COLUMNS, PlannedResponse, ResponseKey
from learning_backdoors.models.run_checkpoints import BASE, BASE_RUN
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Study

FIRST = 10  # samples per question that a checkpoint starts with
GROWTH = 3  # times as many samples in the next round
MARGIN = 2  # checkpoints on each side of a crossing that are sampled too: they show the noise between checkpoints
TAIL = 0.005  # of the crossing's interval on each side. Smaller than evaluate.py's, because each round looks again
LEAST_CHANCE = 0.15  # chance in the verdicts, as a share of the noise, below which more samples do not help

# ---- the rule ----


def next_samples(judged: np.ndarray, positives: np.ndarray, n: np.ndarray, full: int) -> np.ndarray:
    """The samples per question that each of T checkpoints of a run should have after the next round, shape (T,).

    judged: the samples per question that have been judged, shape (T,), in the order of steps. positives and n: the
    positive and all valid verdicts in one condition, shape (T, Q). full: the samples of the full design.

    A crossing lies within an interval of checkpoints (as `statistics.crossing`, with another confidence). Checkpoints
    inside it get more samples, unless noise between checkpoints hides the gain. Checkpoints inside or next to it that
    have no samples get the first ones. Nothing is added if `judged` is returned.
    """
    from learning_backdoors.curves import LEVELS, curve  # scipy takes half a second, which --help should not

    wanted, first = np.maximum(judged, first_samples(len(judged), full)), min(FIRST, full)
    sampled = np.flatnonzero(n.sum(axis=1))
    questions = (n[sampled] > 0).all(axis=0)
    if (wanted > judged).any() or len(sampled) < 2 or not questions.any():
        return wanted
    run = curve(sampled, positives[sampled][:, questions], n[sampled][:, questions])
    useful = run.chance >= LEAST_CHANCE * (run.variances - run.chance)
    for level in LEVELS:
        reached = np.sort(run.first_reached(level))
        cut = int(TAIL * len(reached))
        before, after = max(reached[cut] - 1, 0), reached[-1 - cut]
        if before == len(sampled) - 1:  # the level is not reached
            continue
        inside = sampled[before + 1 : after][useful[before + 1 : after]]
        wanted[inside] = np.maximum(wanted[inside], more_samples(judged[inside], full))
        end = sampled[after] if after < len(sampled) else len(judged)
        around = wanted[max(sampled[before] - MARGIN, 0) : end + MARGIN + 1]
        around[around == 0] = first
    return wanted


def first_samples(checkpoints: int, full: int) -> np.ndarray:
    """Samples per question of the first round: FIRST at the checkpoints number 0, 1, 2, 4, 8, ... and at the last."""
    samples, numbers = np.zeros(checkpoints, int), [0, *(2**power for power in range(checkpoints.bit_length()))]
    samples[[*(number for number in numbers if number < checkpoints), -1]] = min(FIRST, full)
    return samples


def more_samples(judged: np.ndarray, full: int) -> np.ndarray:
    """GROWTH times as many, or the full number if that is less than twice as many again."""
    more = GROWTH * judged
    return np.where(2 * more > full, full, more)


# ---- a round ----

Cell = tuple[str, str, str, str]  # run, checkpoint, condition and question, as in ResponseKey


class Counts(NamedTuple):
    """Verdicts of a cell. judged: with those that are missing or excluded; n: without."""

    judged: int = 0
    n: int = 0
    positives: int = 0


class Round(NamedTuple):
    """The responses to generate in a round, how many of the full design were judged before, and the settled runs."""

    responses: list[PlannedResponse]
    judged: int
    settled: int


def plan_round(
    runs: Sequence[RunDirectory], full_design: Sequence[PlannedResponse], counts: Mapping[Cell, Counts], full: int
) -> Round:
    """The next round. full_design: the responses of `plan.plan_responses` with `full` samples."""
    questions: dict = defaultdict(dict)  # by run, checkpoint and condition, in their order
    for planned in full_design:
        questions[planned.key[:3]][planned.question.id] = None
    judged = {place: min(counts[*place, question].judged for question in asked) for place, asked in questions.items()}
    wanted, unsettled = dict(judged), set()
    sampled = [run for run in runs if run.checkpoints]  # a run that diverged early may have none of --steps
    for run, condition in itertools.product(sampled, dict.fromkeys(place[2] for place in questions)):
        # The base model is the first checkpoint of every run.
        names = [(BASE_RUN if c.name == BASE.name else run.name, c.name) for c in run.checkpoints]
        places = [(*name, condition) for name in names]
        verdicts = np.array([[counts[*place, question] for question in questions[place]] for place in places])
        before = np.array([judged[place] for place in places])
        after = next_samples(before, verdicts[:, :, 2], verdicts[:, :, 1], full)
        unsettled |= {run.name} if (after > before).any() else set()
        wanted |= {place: max(wanted[place], int(samples)) for place, samples in zip(places, after, strict=True)}
    responses = [p for p in full_design if judged[p.key[:3]] <= p.sample_idx < wanted[p.key[:3]]]
    done = sum(min(judged[place], full) * len(asked) for place, asked in questions.items())
    return Round(responses, done, len(runs) - len(unsettled))


def read_counts(path: Path, study: Study, responses: Mapping[ResponseKey, dict]) -> Mapping[Cell, Counts]:
    """The verdicts of a judged file per cell. No file: no verdicts, as before the first round.

    responses: the rows of the responses file. Raises UserError if the judged file is not one of these responses.
    """
    counts, outcome = defaultdict(Counts), study.outcome
    if not path.exists():
        return counts
    columns = (*KEY_COLUMNS, "response", outcome.judge)
    table, _ = parquet.read_responses(path, columns)
    if outcome.judge not in table.column_names:
        raise UserError(f"{path} has no verdicts of the judge {outcome.judge!r}: give the file of judge_responses.py")
    unknown = 0
    for *key, response, verdict in zip(*(table[name].to_pylist() for name in columns), strict=True):
        unknown += responses.get(tuple(key), {}).get("response") != response
        valid, cell = verdict is not None and verdict not in outcome.exclude, counts[*key[:4]]
        counts[*key[:4]] = Counts(cell.judged + 1, cell.n + valid, cell.positives + (verdict == outcome.value))
    if unknown:
        raise UserError(
            f"{path} has verdicts on {unknown:,} responses that --output does not have: give the judged file of this "
            "output, or choose new names for both"
        )
    return counts
