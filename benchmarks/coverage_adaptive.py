"""What adaptive sampling saves, and whether its crossing steps hold the truth: the tables of docs/statistics.md.

Runs    python -m benchmarks.coverage_adaptive --studies 200 --jobs 2

A study has 5 runs of 12 checkpoints. The mean rate of a run rises along an S-curve from 2% to its ceiling, and falls
again in some worlds. Questions differ by 0.8 logits, checkpoints by `noise` logits. Every run is sampled in three
designs: 100 samples at every checkpoint (full), 50 (half), and by the rounds of generate_responses.py --adaptive. Half
and adaptive take their answers from those of the full design.
"""

import argparse
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import special

from learning_backdoors.curves import LEVELS, curve
from learning_backdoors.evaluation import statistics
from learning_backdoors.generation import adaptive

STEPS, FINE = np.append(np.arange(0, 201, 20), 208), np.arange(0, 208.1, 0.5)
RUNS, QUESTIONS, SAMPLES = 5, 10, 100
END = STEPS[-1] + 20  # an infinite limit counts as this step in a width
DESIGNS = ("full", "half", "adaptive")


class World(NamedTuple):
    """middle: the step of half the rise, with its sd between runs. width: steps from 10% to 90% of the rise.

    ceiling: the rate after the rise, with its sd between runs. fall: the share of the rise that is lost again, 60 steps
    after the middle.
    """

    middle: float = 90
    middle_sd: float = 25
    width: float = 60
    ceiling: float = 0.6
    ceiling_sd: float = 0.1
    noise: float = 0.0
    fall: float = 0.0

    def rates(self, runs: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The rates at the checkpoints, shape (runs, T, Q), and the mean rates without noise at the steps FINE."""
        middles = self.middle + self.middle_sd * random.standard_normal((runs, 1))
        tops = np.clip(self.ceiling + self.ceiling_sd * random.standard_normal((runs, 1)), 0.02, 0.95)
        shifts = 0.8 * random.standard_normal((runs, 1, QUESTIONS))

        def at(steps: np.ndarray, deviations: np.ndarray | float = 0.0) -> np.ndarray:
            rise = special.expit(2 * np.log(9) * (steps - middles) / self.width)
            rise = rise * (1 - self.fall * special.expit((steps - middles - 60) / 12))
            logits = special.logit(0.02 + np.maximum(tops - 0.02, 0) * rise)
            return special.expit(logits[..., None] + shifts + deviations)

        noise = self.noise * random.standard_normal((runs, len(STEPS), 1)) * (STEPS > 0)[:, None]
        return at(STEPS, noise), at(FINE).mean(axis=-1)


WORLDS = {
    "early": World(middle=25, middle_sd=10, width=40),
    "middle": World(),
    "late": World(middle=170),
    "a jump": World(width=1),
    "slow": World(width=160, middle_sd=15),
    "never": World(ceiling=0.04, ceiling_sd=0.01),
    "ceiling .14": World(ceiling=0.14, ceiling_sd=0.03),
    "ceiling .5": World(ceiling=0.5, ceiling_sd=0.05),
    "noise .3": World(noise=0.3),
    "noise .6": World(noise=0.6),
    "half falls again": World(middle=60, fall=0.5),
    "all falls again": World(middle=60, fall=1.0),
}


def true_crossings(rates: np.ndarray, level: float) -> np.ndarray:
    """The first step at which each curve, shape (runs, fine steps), is at the level. Infinity if it never is."""
    reached = rates >= level
    return np.where(reached.any(axis=1), FINE[reached.argmax(axis=1)], np.inf)


def sample_in_rounds(answers: np.ndarray) -> tuple[np.ndarray, int]:
    """The samples per question at each checkpoint at the end, and the rounds. answers: (T, Q, SAMPLES), booleans."""
    samples, rounds = np.zeros(len(STEPS), int), 0
    while True:
        n = np.repeat(samples[:, None], QUESTIONS, axis=1)
        wanted = adaptive.next_samples(samples, first_answers(answers, samples), n, SAMPLES)
        if (wanted == samples).all():
            return samples, rounds
        samples, rounds = wanted, rounds + 1


def first_answers(answers: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Positives of shape (T, Q) among the first samples of each checkpoint."""
    return (answers & (np.arange(SAMPLES) < samples[:, None])[:, None]).sum(axis=2)


def study(world: World, medians: dict[float, float], seed: list[int]) -> list[tuple]:
    """Measurements of one simulated study: (table, key, value). medians: the true median crossing step by level."""
    random, results, crossings = np.random.default_rng(seed), [], defaultdict(list)
    rates, fine = world.rates(RUNS, random)
    truths = {level: true_crossings(fine, level) for level in LEVELS}
    for run in range(RUNS):
        answers = random.random((len(STEPS), QUESTIONS, SAMPLES)) < rates[run][..., None]
        samples, rounds = sample_in_rounds(answers)
        results += [("used", None, samples.mean() / SAMPLES), ("rounds", None, rounds)]
        designs = (np.full(len(STEPS), SAMPLES), np.full(len(STEPS), SAMPLES // 2), samples)
        for design, n in zip(DESIGNS, designs, strict=True):
            at = n > 0
            positives = first_answers(answers, n)[at]
            line = curve(STEPS[at], positives, np.repeat(n[at, None], QUESTIONS, axis=1))
            detected = statistics.detection(line)
            results.append(("detected", design, np.inf if detected is None else line.steps[detected]))
            for level in LEVELS:
                crossing = statistics.crossing(line, level)
                crossings[design, level].append(crossing)
                hit = crossing.lower <= truths[level][run] <= crossing.upper
                results += [("run", (design, level), hit), ("width", (design, level), width(crossing))]
    for (design, level), runs in crossings.items():
        crossed = np.isfinite([c.step for c in runs])
        times = np.where(crossed, [c.step for c in runs], STEPS[-1])
        median = statistics.median_crossing(times, crossed, [c.before for c in runs], [c.after for c in runs])
        results.append(("median", (design, level), median.lower <= medians[level] <= median.upper))
    return results


def width(interval) -> float:
    return min(interval.upper, END) - min(interval.lower, END)


def of_world(name: str, studies: int) -> dict[tuple, np.ndarray]:
    """All measurements of a world, by table and key."""
    world, number = WORLDS[name], list(WORLDS).index(name)
    many = world.rates(4000, np.random.default_rng(number))[1]
    medians = {level: float(np.median(true_crossings(many, level))) for level in LEVELS}
    values = defaultdict(list)
    for index in range(studies):
        for table, key, value in study(world, medians, [number, index]):
            values[table, key].append(value)
    return {key: np.array(numbers) for key, numbers in values.items()}


def crossing_row(name: str, level: float, values: dict[tuple, np.ndarray]) -> list[str]:
    def means(table: str, digits: int, factor: int = 1) -> str:
        return ", ".join(f"{factor * values[table, (design, level)].mean():.{digits}f}" for design in DESIGNS)

    coverage = [means("run", 1, 100), means("median", 1, 100)]
    return [f"{name}, {level:.0%}", f"{values['used', None].mean():.0%}", means("width", 0), *coverage]


def rounds_row(name: str, values: dict[tuple, np.ndarray]) -> list[str]:
    rounds, steps = values["rounds", None], {design: values["detected", design] for design in DESIGNS}
    both = np.isfinite(steps["full"]) & np.isfinite(steps["adaptive"])
    later = f"{(steps['adaptive'][both] - steps['full'][both]).mean():.0f}" if both.any() else ""
    found = ", ".join(f"{100 * np.isfinite(s).mean():.0f}" for s in steps.values())
    return [name, f"{rounds.mean():.1f}, {rounds.max()}", found, later]


def print_table(heads: str, rows: list[list[str]]) -> None:
    print(
        "", f"| {heads} |", "| --- |" + " ---: |" * heads.count("|"), *(f"| {' | '.join(r)} |" for r in rows), sep="\n"
    )


def report(studies: int, jobs: int) -> None:
    """Print both tables. Values are in percent, except widths and steps."""
    with ProcessPoolExecutor(jobs) as pool:
        worlds = list(zip(WORLDS, pool.map(of_world, WORLDS, [studies] * len(WORLDS)), strict=True))
    heads = "world, level | answers used | width: full, half, adaptive | crossing of a run | median crossing"
    print_table(heads, [crossing_row(name, level, values) for name, values in worlds for level in LEVELS])
    heads = "world | rounds: mean, most | detected: full, half, adaptive | adaptive later by"
    print_table(heads, [rounds_row(name, values) for name, values in worlds])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="simulated studies per world (default: 200)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    arguments = parser.parse_args()
    report(arguments.studies, arguments.jobs)
