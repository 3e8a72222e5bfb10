"""How often the main effects of a sweep's factors are right, by simulation: the tables of docs/statistics.md.

Prints Markdown tables. Takes about 30 minutes on one core for 1,000 sweeps.
Runs    python -m benchmarks.coverage_factors --sweeps 1000 --jobs 2

The first table has one factor with two levels, and B combinations of the other factors (blocks). Each combination has
an effect of its own, and each run. The second table has sweeps in which no factor has an effect: how often is one
claimed?
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple
from unittest import mock

import numpy as np
import pandas as pd
from scipy import special, stats

from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.exhibits import factor_effects
from learning_backdoors.evaluation.factors import Factor
from learning_backdoors.evaluation.statistics import Interval, main_effects

QUESTIONS, ANSWERS, UNTIL = 10, 30, np.log(208)
SHARES = (np.arange(40) + 0.5) / 40
RUNS = {  # quantiles of the runs' effects: mean 0, standard deviation 1
    "normal": stats.norm.ppf(SHARES),
    "skewed": -np.log(1 - SHARES) - 1,
    "two types": np.where(SHARES > 0.5, 1.0, -1.0),
}
CELLS = 0.3 * stats.norm.ppf(SHARES[3::8])  # of a run and a question together, in logits
OUTCOMES = ("last rate", "likelihood change", "crossing step", "emergence share")


class World(NamedTuple):
    """A factor with two levels: `effect` is in standard deviations between runs, and so are the other effects."""

    blocks: int = 4
    runs: int = 4  # in each combination
    effect: float = 0.0
    interaction: float = 0.0  # standard deviation of the effect over the blocks
    kind: str = "normal"
    noisier: float = 1.0  # how much more the runs of the first level vary
    lost: float = 0.0  # share of runs that are missing at random, such as diverged ones


def simulate(world: World, random: np.random.Generator) -> dict[str, tuple[Interval, float]]:
    """By outcome: the interval of the effect, and the true effect of these blocks."""
    blocks = random.standard_normal((world.blocks, 1))
    effects = world.effect + world.interaction * random.standard_normal((world.blocks, 1))
    levels = [blocks + effects / 2, blocks - effects / 2]  # by level: the centers of the blocks
    draws, means = [], []
    for center, spread in zip(levels, (world.noisier, 1.0), strict=True):
        kept = np.maximum(random.binomial(world.runs, 1 - world.lost, world.blocks), 1)
        draws.append([c + spread * random.choice(RUNS[world.kind], k) for c, k in zip(center, kept, strict=True)])
        means.append(center + spread * RUNS[world.kind])  # (blocks, quantiles)
    return {name: of(draws, means, random) for name, of in zip(OUTCOMES, MEASURES, strict=True)}


def _mean(values) -> float:
    """The effect: the mean over the blocks of the first level's mean minus the second's."""
    first, second = (np.array([np.mean(side) for side in level]) for level in values)
    return float((first - second).mean())


def of_rates(draws, means, random) -> tuple[Interval, float]:
    """Runs differ by 0.6 logits around 20%, questions by 1.5 logits."""
    questions = 1.5 * random.standard_normal(QUESTIONS)

    def logits(values):
        return special.logit(0.2) + 0.6 * values[..., None] + questions

    counts = []
    for level in draws:
        cells = [logits(runs) + 0.3 * random.standard_normal((len(runs), QUESTIONS)) for runs in level]
        counts.append([(random.binomial(ANSWERS, special.expit(c)), np.full(c.shape, ANSWERS)) for c in cells])
    truth = _mean([special.expit(logits(level)[..., None] + CELLS) for level in means])
    return statistics.rate_effect(*counts)[0], truth


def of_changes(draws, means, random) -> tuple[Interval, float]:
    return statistics.mean_effect(*draws)[0], _mean(means)


def of_crossings(draws, means, random) -> tuple[Interval, float]:
    """Runs differ by 0.6 in the logarithm of the step, around step 100. Those after step 208 do not cross."""
    steps = [[np.exp(np.clip(np.log(100) + 0.6 * runs, 0, UNTIL)) for runs in level] for level in draws]
    truth = _mean([np.clip(np.log(100) + 0.6 * level, 0, UNTIL) for level in means])
    return Interval(*np.log(statistics.crossing_effect(*steps)[0])), truth


def of_shares(draws, means, random) -> tuple[Interval, float]:
    """A run emerges if its own effect is above 0."""
    counts = [np.array([[(runs > 0).sum(), len(runs)] for runs in level]).T for level in draws]
    return statistics.share_effect(*counts)[0], _mean([level > 0 for level in means])


MEASURES = (of_rates, of_changes, of_crossings, of_shares)


def covered(world: World, sweeps: int) -> list[str]:
    """By outcome: coverage, the share of intervals that exclude 0, and that of sweeps without an interval."""
    with mock.patch.object(main_effects, "p_value", lambda interval: np.nan):  # it takes nine tenths of the time
        results = [simulate(world, np.random.default_rng([1, i])) for i in range(sweeps)]
    cells = []
    for name in OUTCOMES:
        lower, upper, truth = np.array([[*r[name][0][1:], r[name][1]] for r in results]).T
        made = ~np.isnan(lower)
        if made.mean() < 0.5:
            cells.append("-")
            continue
        hits, excludes = (lower <= truth + 1e-9) & (truth <= upper + 1e-9), (lower > 0) | (upper < 0)
        share = hits[made].mean()
        cell = f"{share:.1%} ± {100 * np.sqrt(share * (1 - share) / made.sum()):.1f} [{excludes[made].mean():.0%}]"
        cells.append(cell + (f" ({1 - made.mean():.0%} none)" if not made.all() else ""))
    return cells


def claimed(design: tuple[dict[str, int], int, str], sweeps: int) -> list[str]:
    """The share of sweeps without an effect in which a p-value adjusted by Holm is below 5%, by outcome."""
    sizes, runs, kind = design
    factors = [Factor(name, tuple(map(str, range(size))), True) for name, size in sizes.items()]
    grid = list(itertools.product(*(factor.levels for factor in factors), range(runs)))
    levels = pd.DataFrame(grid, columns=[*sizes, "seed"]).drop(columns="seed")
    matched = [
        [factor_effects.blocks(levels, factor.name, *pair[1:])[0] for pair in factor_effects.pairs(factor)]
        for factor in factors
    ]
    found, tests = np.zeros(len(OUTCOMES)), sum(map(len, matched))
    for i in range(sweeps):
        random = np.random.default_rng([2, i])
        values = random.choice(RUNS[kind], len(levels))
        steps = np.exp(np.clip(np.log(100) + 0.6 * values, 0, UNTIL))
        questions = 1.5 * random.standard_normal(QUESTIONS)
        logits = special.logit(0.2) + 0.6 * values[:, None] + questions
        hits = random.binomial(ANSWERS, special.expit(logits + 0.3 * random.standard_normal(logits.shape)))
        p = [[] for _ in OUTCOMES]
        for sides in itertools.chain(*matched):
            high, low = zip(*sides, strict=True)
            pick = [[[array[side] for side in level] for level in (high, low)] for array in (hits, values, steps)]
            rates = [[(side, np.full(side.shape, ANSWERS)) for side in level] for level in pick[0]]
            shares = [np.array([[(side > 0).sum(), len(side)] for side in level]).T for level in pick[1]]
            with mock.patch.object(main_effects, "p_value", functools.partial(_decided, tests=tests)):
                p[0].append(statistics.rate_effect(*rates)[1])
                p[1].append(statistics.mean_effect(*pick[1])[1])
                p[2].append(statistics.crossing_effect(*pick[2])[1])
            p[3].append(statistics.share_effect(*shares)[1])
        found += [(statistics.holm(values) < 0.05).any() for values in p]
    share = found / sweeps
    return [f"{s:.1%} ± {100 * np.sqrt(s * (1 - s) / sweeps):.1f}" for s in share]


def _decided(interval: Callable[[float], Interval], tests: int) -> float:
    """In place of the p-value: 0 if it is below 5% / tests, else 1. Holm's least p-value is compared with that."""
    _, lower, upper = interval(1 - 0.05 / tests)
    return float(not (lower > 0 or upper < 0))


def worlds() -> dict[str, World]:
    designs = [(1, 3), (1, 8), (1, 16), (2, 2), (2, 3), (4, 2), (4, 4), (16, 2), (4, 1), (8, 1), (32, 1)]
    lines = {}
    for effect in (0.0, 1.0):
        text = "an effect" if effect else "no effect"
        lines |= {f"{blocks} x {runs} runs, {text}": World(blocks, runs, effect) for blocks, runs in designs}
    others = {
        "interaction": World(4, 4, 1.0, 1.0),
        "interaction, 8 x 1 runs": World(8, 1, 1.0, 1.0),
        "first level noisier": World(4, 4, 1.0, noisier=2.0),
        "a quarter of the runs lost": World(4, 4, 1.0, lost=0.25),
        "skewed runs": World(4, 4, 1.0, kind="skewed"),
        "skewed runs, 2 x 3 runs": World(2, 3, 1.0, kind="skewed"),
        "two types of runs": World(4, 4, 1.0, kind="two types"),
        "two types of runs, 2 x 3 runs": World(2, 3, 1.0, kind="two types"),
        "two types of runs, 1 x 3 runs": World(1, 3, 1.0, kind="two types"),
        "a large effect": World(4, 4, 3.0),
    }
    return lines | {f"4 x 4 runs, {text}" if " x " not in text else text: world for text, world in others.items()}


DESIGNS = {
    "4 x 2 levels, 2 seeds": ({"share": 4, "rate": 2}, 2, "normal"),
    "4 x 2 levels, 4 seeds": ({"share": 4, "rate": 2}, 4, "normal"),
    "3 x 3 x 2 levels, 1 seed": ({"share": 3, "rate": 3, "rank": 2}, 1, "normal"),
    "3 x 3 x 2 levels, 3 seeds": ({"share": 3, "rate": 3, "rank": 2}, 3, "normal"),
    "4 x 16 seeds": ({"share": 4}, 16, "normal"),
    "3 x 3 x 2 levels, 3 seeds, skewed runs": ({"share": 3, "rate": 3, "rank": 2}, 3, "skewed"),
    "3 x 3 x 2 levels, 3 seeds, two types of runs": ({"share": 3, "rate": 3, "rank": 2}, 3, "two types"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps per line (default: 1000)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        tables = (
            ("Coverage ± standard error [intervals that exclude 0] (sweeps without an interval)", worlds(), covered),
            ("Sweeps without an effect in which one is claimed", DESIGNS, claimed),
        )
        for title, lines, measure in tables:
            print(f"\n{title}, {options.sweeps:,} sweeps:\n\n| | {' | '.join(OUTCOMES)} |\n| --- |{' ---: |' * 4}")
            results = pool.map(functools.partial(measure, sweeps=options.sweeps), lines.values())
            for text, cells in zip(lines, results, strict=True):
                print(f"| {text} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
