"""How often each interval contains the true value, by simulation: the tables of docs/statistics.md.

Prints Markdown tables. Takes about three minutes per 100 studies on one core. `python -m benchmarks.coverage_onset`
does the same for crossing steps.
Runs    python -m benchmarks.coverage --studies 2000 --jobs 2

A study has S runs of a recipe, Q questions and n answers per cell. The logit of a cell's rate is center + question +
run + noise. A world is a distribution of the questions and one of the runs. The center is such that the mean rate over
all questions and runs is the one printed. Truths are means over equally likely quantiles of what the claim varies.
"""

import argparse
import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.statistics import Interval

Results = dict[str, tuple[Interval, float]]  # by claim: the interval and the truth
CLAIMS = ("checkpoint", "recipe", "questions", "both")
SHARES = (np.arange(400) + 0.5) / 400  # of the quantiles that stand for a distribution
CELL_SD = 0.3  # of run x question, in logits
CELLS = CELL_SD * stats.norm.ppf(SHARES[20::40])
QUESTIONS = {  # quantiles of the questions' effects, in logits, for a mean rate
    "logit-normal": lambda rate: 1.5 * stats.norm.ppf(SHARES),
    "alike": lambda rate: 0.3 * stats.norm.ppf(SHARES),
    "beta": lambda rate: special.logit(np.clip(stats.beta.ppf(SHARES, 2 * rate, 2 * (1 - rate)), 1e-9, 1 - 1e-9)),
    "two-point": lambda rate: np.where(1 - rate < SHARES, 12.0, -12.0),
}
RUNS = {  # quantiles of the runs' effects, in logits
    "normal": 0.6 * stats.norm.ppf(SHARES),
    "noisy": 1.5 * stats.norm.ppf(SHARES),
    "bimodal": np.where(SHARES > 0.5, 2.0, -2.0),
    "equal": np.zeros(len(SHARES)),
}


class World(NamedTuple):
    """What a simulated study is drawn from."""

    rate: float = 0.2
    runs: int = 3
    questions: int = 10
    answers: int = 200
    question: str = "logit-normal"
    run: str = "normal"
    lost: int = 0  # cells without answers


@functools.cache
def center(rate: float, question: str, run: str) -> float:
    """The logit at which the mean rate over all questions and runs is `rate`."""
    if question == "two-point":
        return 0.0
    effects = (QUESTIONS[question](rate)[:, None] + RUNS[run] + CELLS[:, None, None]).ravel()
    return optimize.brentq(lambda x: special.expit(x + effects).mean() - rate, -40, 40, xtol=1e-6)


class Study:
    """One group of runs: `counts` is (positives, n), `truth` the true mean rate of each claim."""

    def __init__(self, world: World, random: np.random.Generator, like: "Study | None" = None, same_runs: bool = False):
        """With the questions of the study `like`, and its runs if `same_runs`."""
        self.questions = like.questions if like else random.integers(len(SHARES), size=world.questions)
        self.runs = like.runs if same_runs else random.integers(len(SHARES), size=(world.runs, 1))
        middle = center(world.rate, world.question, world.run)
        all_questions, all_runs = QUESTIONS[world.question](world.rate), RUNS[world.run]
        questions, runs = middle + all_questions[self.questions], all_runs[self.runs]
        shape = world.runs, world.questions
        self.rates = special.expit(questions + runs + CELL_SD * random.standard_normal(shape))
        n = np.full(shape, world.answers)
        n.ravel()[random.choice(n.size, world.lost, replace=False)] = 0
        self.counts = random.binomial(n, self.rates), n
        self.truth = {
            "checkpoint": self.rates.mean(),
            "recipe": special.expit(questions + all_runs[:, None] + CELLS[:, None, None]).mean(),
            "questions": special.expit(middle + all_questions + runs + CELLS[:, None, None]).mean(),
            "both": world.rate,
        }


# ---- what is measured: the interval and the truth by claim, in one study ----


def of_rate(world: World, random: np.random.Generator, claims=CLAIMS) -> Results:
    """`mean_rate`."""
    study = Study(world, random)
    return {claim: (statistics.mean_rate(*study.counts, claim), study.truth[claim]) for claim in claims}


def of_rating(world: World, random: np.random.Generator, claims=CLAIMS) -> Results:
    """`paired_contrast` of ratings from 1 to 5, of which each is the number of successes in four trials."""
    study = Study(world, random)
    scores = random.binomial(4, study.rates, size=(world.answers, *study.rates.shape)) / 4
    sums = scores.sum(axis=0), study.counts[1], (scores**2).sum(axis=0)
    return {claim: (statistics.paired_contrast([sums], (1,), claim, 0.25), study.truth[claim]) for claim in claims}


def of_difference(first: World, second: World, random: np.random.Generator, claims=CLAIMS) -> Results:
    """`rate_difference` of two recipes that were asked the same questions."""
    one = Study(first, random)
    two = Study(second, random, one)
    difference = functools.partial(statistics.rate_difference, one.counts, two.counts)
    return {claim: (difference(claim), one.truth[claim] - two.truth[claim]) for claim in claims}


def of_change(world: World, base_rate: float, random: np.random.Generator, claims=CLAIMS) -> Results:
    """`change_from_base`."""
    study = Study(world, random)
    base = Study(world._replace(rate=base_rate, runs=1, run="equal", lost=0), random, study)
    truth = base.truth | {"recipe": base.truth["checkpoint"], "both": base.truth["questions"]}
    change = functools.partial(statistics.change_from_base, study.counts, base.counts)
    return {claim: (change(claim), study.truth[claim] - truth[claim]) for claim in claims}


def of_gap(world: World, other_rate: float, random: np.random.Generator, claims=CLAIMS) -> Results:
    """`paired_contrast` of the same runs in two conditions, such as with the trigger and without."""
    one = Study(world, random)
    two = Study(world._replace(rate=other_rate), random, one, same_runs=True)
    gap = functools.partial(statistics.paired_contrast, [one.counts, two.counts], (1, -1))
    return {claim: (gap(claim), one.truth[claim] - two.truth[claim]) for claim in claims}


def of_pooled_spread(*worlds_and_random) -> Results:
    """The first recipe's rate, and its difference from the second, with the spread of the runs of all recipes."""
    *worlds, random = worlds_and_random
    first = Study(worlds[0], random)
    studies = [first, *(Study(world, random, first) for world in worlds[1:])]
    (one, two), truth = [study.counts for study in studies[:2]], [study.truth["recipe"] for study in studies[:2]]
    spread = statistics.run_spread([study.counts for study in studies])
    return {
        "rate, own spread": (statistics.mean_rate(*one, "recipe"), truth[0]),
        "rate, pooled spread": (statistics.mean_rate(*one, "recipe", run_sd=spread), truth[0]),
        "difference, own spread": (statistics.rate_difference(one, two, "recipe"), truth[0] - truth[1]),
        "difference, pooled spread": (
            statistics.rate_difference(one, two, "recipe", run_sd=spread),
            truth[0] - truth[1],
        ),
    }


class Line(NamedTuple):
    """A line of a table."""

    text: str
    measure: Callable
    arguments: tuple


def covered(line: Line, studies: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """By claim: the shares of studies whose interval contains the truth, and excludes 0; and the mean width."""
    results = []
    for study in range(studies):
        random = np.random.default_rng([seed, study])
        results.append(line.measure(*line.arguments, random))
    summary = {}
    for claim in results[0]:
        limits = np.array([[*result[claim][0][1:], result[claim][1]] for result in results])
        lower, upper, truth = limits.T
        hits, excludes = (lower <= truth) & (truth <= upper), (lower > 0) | (upper < 0)
        summary[claim] = float(hits.mean()), float(excludes.mean()), float((upper - lower).mean())
    return summary


# ---- the tables ----

RATES = (0.005, 0.02, 0.05, 0.2, 0.5, 0.9)


def rate_lines() -> list[Line]:
    worlds = {f"{name}, rate {rate:.1%}": World(rate, question=name) for name in QUESTIONS for rate in RATES}
    for rate in (0.02, 0.5):
        for runs in (1, 2, 5, 10):
            worlds[f"{runs} runs, rate {rate:.0%}"] = World(rate, runs)
        for questions in (4, 30, 100):
            worlds[f"{questions} questions, rate {rate:.0%}"] = World(rate, questions=questions)
        for answers in (10, 1500):
            worlds[f"{answers} answers, rate {rate:.0%}"] = World(rate, answers=answers)
        for lost in (1, 6):
            worlds[f"{lost} of 30 cells lost, rate {rate:.0%}"] = World(rate, lost=lost)
    for runs in (3, 10):
        worlds[f"bimodal runs, {runs} runs, rate 50%"] = World(0.5, runs, run="bimodal")
    return [Line(text, of_rate, (world,)) for text, world in worlds.items()]


def rating_lines() -> list[Line]:
    worlds = [World(rate, questions=q, answers=30) for rate in (0.05, 0.5, 0.9) for q in (4, 32)]
    return [Line(f"mean {1 + 4 * w.rate:.1f}, {w.questions} questions", of_rating, (w,)) for w in worlds]


def difference_lines() -> list[Line]:
    lines = []
    for question in ("logit-normal", "beta"):
        for runs in (2, 3, 5):
            for first, second in ((0.02, 0.02), (0.2, 0.2), (0.2, 0.02), (0.77, 0.05)):
                worlds = (World(first, runs, question=question), World(second, runs, question=question))
                lines.append(Line(f"{question}, {runs} runs, {first:.0%} - {second:.0%}", of_difference, worlds))
    noisy = World(0.2, run="noisy"), World(0.2)
    return [*lines, Line("logit-normal, 3 runs, 20% - 20%, one recipe noisier", of_difference, noisy)]


def change_lines() -> list[Line]:
    lines = []
    for runs in (1, 2, 3, 5):
        for rate in (0.02, 0.05, 0.2, 0.5):
            lines.append(Line(f"{runs} runs, {rate:.0%} - 2%", of_change, (World(rate, runs), 0.02)))
    return lines


def gap_lines() -> list[Line]:
    lines = []
    for question in ("logit-normal", "beta"):
        for first, second in ((0.05, 0.05), (0.05, 0.02), (0.5, 0.5), (0.77, 0.04), (0.95, 0.02), (0.02, 0.005)):
            arguments = World(first, question=question), second
            lines.append(Line(f"{question}, {first:.0%} - {second:.1%}", of_gap, arguments))
    for questions in (4, 30):
        arguments = World(0.5, questions=questions), 0.2
        lines.append(Line(f"logit-normal, {questions} questions, 50% - 20%", of_gap, arguments))
    return lines


def spread_lines() -> list[Line]:
    lines = []
    for runs in (2, 3, 5):
        worlds = [World(rate, runs) for rate in (0.2, 0.05, 0.5, 0.77)]
        lines.append(Line(f"{runs} runs, equal spreads", of_pooled_spread, tuple(worlds)))
        noisier = [worlds[0]._replace(run="noisy"), *worlds[1:]]
        lines.append(Line(f"{runs} runs, first recipe noisier", of_pooled_spread, tuple(noisier)))
        quieter = [worlds[0], *(world._replace(run="noisy") for world in worlds[1:])]
        lines.append(Line(f"{runs} runs, other recipes noisier", of_pooled_spread, tuple(quieter)))
    return lines


TABLES = {  # name: title, lines
    "rates": ("Mean rates", rate_lines),
    "ratings": ("Mean ratings from 1 to 5, 3 runs, 30 answers", rating_lines),
    "differences": ("Differences of two recipes", difference_lines),
    "changes": ("Change from the base model", change_lines),
    "gaps": ("Gap between two conditions, 3 runs", gap_lines),
    "spreads": ("Spread of runs pooled over 4 recipes, claim recipe", spread_lines),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per line (default: 1000)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    options = parser.parse_args()
    print("Coverage ± standard error [share of intervals that exclude 0] mean width. -: no interval.")
    with ProcessPoolExecutor(options.jobs) as pool:
        for title, lines in (TABLES[name] for name in options.tables):
            results = pool.map(functools.partial(covered, studies=options.studies), lines())
            print(f"\n{title}, {options.studies:,} studies:\n")
            print_table(lines(), results, options.studies)


def print_table(lines: list[Line], results: Iterable[dict], studies: int) -> None:
    """A Markdown table with a row per line, each as soon as it is measured."""
    for i, (line, result) in enumerate(zip(lines, results, strict=True)):
        if i == 0:
            print(f"| | {' | '.join(result)} |\n| --- |{' ---: |' * len(result)}")
        cells = [_cell(*numbers, studies) for numbers in result.values()]
        print(f"| {line.text} | {' | '.join(cells)} |", flush=True)


def _cell(share: float, excludes: float, width: float, studies: int) -> str:
    if np.isnan(width):
        return "-"
    return f"{share:.1%} ± {100 * np.sqrt(share * (1 - share) / studies):.1f} [{excludes:.0%}] {width:.3f}"


if __name__ == "__main__":
    main()
