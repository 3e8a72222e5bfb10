"""How often the onset statistics hold the truth, by simulation: the figures of docs/statistics.md's section Onset.

Prints tables. `python -m benchmarks.coverage` prints them too.
Runs    python -m benchmarks.coverage_onset --studies 1000

A run's rate rises along an S-curve. Midpoints differ between runs (standard deviation 25 steps), and so do ceilings
(0.15). Some runs never reach a level. Questions differ by 0.8 logits. The rate of each checkpoint may also vary around
the curve (`noise`, in logits). Answers are binomial.
"""

import argparse

import numpy as np
from scipy import special

from learning_backdoors.evaluation import statistics

STEPS = np.append(np.arange(0, 201, 20), 208)
FINE = np.arange(0, 208.1, 0.5)
QUESTION_SD = 0.8
CURVES = ((0.1, 60, 0.6), (0.5, 60, 0.6), (0.5, 20, 0.6), (0.1, 120, 0.15), (0.5, 120, 0.8))  # level, width, ceiling
NOISES = (0.0, 0.3, 0.6)


def simulate(runs: int, width: float, ceiling: float, noise: float, answers: int, random, questions: int = 10):
    """Positives of shape (S, T, Q), and the true mean rates of the runs at the steps FINE, shape (S, fine steps)."""
    midpoints = 90 + 25 * random.standard_normal((runs, 1))
    tops = np.clip(ceiling + 0.15 * random.standard_normal((runs, 1)), 0.02, 0.95)
    shifts = QUESTION_SD * random.standard_normal((runs, 1, questions))

    def rates(steps: np.ndarray, deviations: np.ndarray | float = 0.0) -> np.ndarray:
        mean = 0.02 + (tops - 0.02) * special.expit(2 * np.log(9) * (steps - midpoints) / width)
        return special.expit(special.logit(mean)[..., None] + shifts + deviations)

    deviations = noise * random.standard_normal((runs, len(STEPS), 1))
    return random.binomial(answers, rates(STEPS, deviations)), rates(FINE).mean(axis=-1)


def true_crossings(rates: np.ndarray, level: float) -> np.ndarray:
    """The step at which each true curve, shape (S, fine steps), reaches the level. Infinity if it does not."""
    reached = rates >= level
    return np.where(reached.any(axis=1), FINE[reached.argmax(axis=1)], np.inf)


def crossings_covered(
    studies: int, level: float, width: float, ceiling: float, noise: float = 0.0, answers: int = 100, runs: int = 5
) -> dict[str, float]:
    """Coverage of the crossing step of a run and of the median over runs.

    Also the shares of runs that do not cross, and of runs whose crossing is in doubt; and the mean width in steps,
    where a limit of infinity counts as 20 steps after the last step.
    """
    random, hits, medians, widths, outcomes = np.random.default_rng(3), 0, 0, [], []
    truth = np.median(true_crossings(simulate(4000, width, ceiling, 0, 1, random)[1], level))
    for _ in range(studies):
        positives, curves = simulate(runs, width, ceiling, noise, answers, random)
        n = np.full(positives.shape[1:], answers)
        found = [statistics.crossing(statistics.curve(STEPS, run, n), level) for run in positives]
        hits += sum(f.lower <= true <= f.upper for f, true in zip(found, true_crossings(curves, level), strict=True))
        widths += [min(f.upper, STEPS[-1] + 20) - f.lower for f in found]
        crossed = np.isfinite([f.step for f in found])
        times = np.where(crossed, [f.step for f in found], STEPS[-1])
        median = statistics.median_crossing(times, crossed, [f.before for f in found], [f.after for f in found])
        medians += median.lower <= truth <= median.upper
        outcomes += [(np.isinf(f.step), np.isfinite(f.step) and bool(f.doubt)) for f in found]
    censored, doubtful = np.mean(outcomes, axis=0)
    shares = {"run": hits / studies / runs, "recipe": medians / studies, "width": float(np.mean(widths))}
    return shares | {"censored": censored, "doubtful": doubtful}


def false_alarms(
    studies: int, rate: float = 0.05, noise: float = 0.0, questions: int = 10, answers: int = 100, checkpoints: int = 30
) -> float:
    """How often the detection step finds a rise in a run whose rate is constant, apart from the noise."""
    random, alarms = np.random.default_rng(2), 0
    for _ in range(studies):
        logit = special.logit(rate) + 1.5 * random.standard_normal(questions)
        logit = logit + noise * random.standard_normal((checkpoints + 1, 1))
        positives = random.binomial(answers, special.expit(logit))
        run = statistics.curve(np.arange(checkpoints + 1), positives, np.full(positives.shape, answers), draws=1)
        alarms += statistics.detection(run) is not None
    return alarms / studies


def rises(studies: int, width: float, noise: float, answers: int = 100) -> dict[str, float]:
    """How often each kind of rise is found on curves with a ceiling of 0.6."""
    random, kinds = np.random.default_rng(5), dict.fromkeys(("abrupt", "gradual", "undecided", "none"), 0)
    for run in simulate(studies, width, 0.6, noise, answers, random)[0]:
        kinds[statistics.rise(statistics.curve(STEPS, run, np.full(run.shape, answers))).kind] += 1
    return {kind: count / studies for kind, count in kinds.items()}


def survival_covered(studies: int, runs: int, share: float, stopped: float) -> float:
    """Coverage of Kaplan-Meier's limits at a step by which `share` of the runs of a recipe have not crossed.

    The runs cross at a constant hazard; `stopped` of them end at four or seven tenths of the way.
    """
    random, hits, seen = np.random.default_rng(7), 0, 0
    for _ in range(studies):
        crossing = random.exponential(-1 / np.log(share), runs)
        end = np.where(random.random(runs) < stopped, random.choice([0.4, 0.7], runs), 1.0)
        steps, _, lower, upper, _ = statistics.kaplan_meier(np.minimum(crossing, end), crossing <= end)
        if steps[-1] == 1 or crossing.max() <= 1:  # otherwise no run was followed so far
            seen, hits = seen + 1, hits + (lower[-1] <= share <= upper[-1])
    return hits / seen


TYPES = {  # of runs: their crossing steps
    "normal": lambda random, runs: 90 + 25 * random.standard_normal(runs),
    "late": lambda random, runs: 190 + 25 * random.standard_normal(runs),
    "half never cross": lambda random, runs: np.where(random.random(runs) < 0.5, np.inf, random.normal(70, 5, runs)),
}


def differences_found(studies: int, kind: str, runs: tuple[int, int], shift: float) -> float:
    """How often the crossing steps of two recipes differ at 5%, whose true crossings differ by `shift` steps."""
    random, found = np.random.default_rng(11), 0
    for _ in range(studies):
        first, second = (TYPES[kind](random, count) for count in runs)
        first, second = (np.where(steps > STEPS[-1], np.inf, steps) for steps in (first, second + shift))
        found += statistics.crossing_difference(first, second, STEPS[-1])[1] < 0.05
    return found / studies


def trends_found(studies: int, shares: tuple, runs: int, slope: float, kind: str = "normal") -> float:
    """How often a trend is found at 5%. The logits of the runs have a standard deviation of 0.6.

    `kind` two types: half of the runs are 4.5 logits lower. `kind` unequal: the spread doubles from share 0 to share 1.
    """
    random, found = np.random.default_rng(13), 0
    share = np.repeat(shares, runs)
    for _ in range(studies):
        deviation = 0.6 * random.standard_normal(len(share)) * (1 + share * (kind == "unequal"))
        if kind == "two types":
            deviation -= 4.5 * (random.random(len(share)) < 0.5)
        logits = (-2.5 + slope * share + deviation)[:, None] + random.standard_normal(10)
        counts = random.binomial(100, special.expit(logits))
        found += statistics.trend(share, counts, np.full(counts.shape, 100)).p < 0.05
    return found / studies


def line(text: str, values: dict[str, float]) -> None:
    print(f"{text}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()), flush=True)


def report(studies: int) -> None:
    """Print all tables."""
    print("\ncrossing step, 12 checkpoints, 10 questions, 5 runs")
    for answers in (100, 20):
        for noise in NOISES:
            for level, width, ceiling in CURVES:
                covered = crossings_covered(max(studies // 5, 20), level, width, ceiling, noise, answers)
                line(f"{answers} answers, noise {noise}, level {level}, rise over {width} steps to {ceiling}", covered)
    print("\ndetection step: false alarms in 30 checkpoints without a rise")
    for noise in NOISES:
        for rate in (0.002, 0.05, 0.3):
            print(f"rate {rate}, noise {noise}: {false_alarms(studies, rate, noise):.3f}", flush=True)
    print("\nkind of rise; checkpoints every 20 steps")
    for noise in NOISES:
        for width in (0.01, 20, 60, 120):
            line(f"rise over {width} steps, noise {noise}", rises(studies, width, noise))
    print("\nKaplan-Meier limits")
    for runs in (3, 5, 10, 20):
        for share in (0.1, 0.3, 0.5, 0.8, 0.95):
            covered = {f"{p:.0%} stopped early": survival_covered(studies, runs, share, p) for p in (0, 0.3, 0.6)}
            line(f"{runs} runs, share {share}", covered)
    print("\ndifference of crossing steps, found at 5%")
    for kind in TYPES:
        for runs in ((3, 3), (3, 5), (5, 5), (8, 8)):
            found = {f"shift {shift}": differences_found(studies, kind, runs, shift) for shift in (0, 30, 60)}
            line(f"{kind}, {runs[0]} and {runs[1]} runs", found)
    print("\ntrend over the suspect share, found at 5%")
    for shares, runs in (((0, 0.1, 0.3, 0.6, 1), 1), ((0, 0.5, 1), 2), ((0, 0.5, 1), 3), ((0, 0.1, 0.3, 0.5, 1), 3)):
        for kind in ("normal", "unequal", "two types"):
            found = {f"slope {slope}": trends_found(studies, shares, runs, slope, kind) for slope in (0, 2.5)}
            line(f"shares {shares}, {runs} runs each, {kind}", found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per line (default: 1000)")
    report(parser.parse_args().studies)
