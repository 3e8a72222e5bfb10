"""How often each interval holds the truth, by simulation: the figures of docs/statistics.md.

Prints tables. Takes ten minutes with 1,000 studies per line, two minutes with 200.
Runs    python -m benchmarks.coverage --studies 1000

Answers are binomial. The logit of a rate is center + run + question + run x question, with standard deviations 0.6, 1.5
and 0.3. The center is set so that the mean rate over all runs and questions is the one printed. A coverage of 0 means
that there is no interval.
"""

import argparse

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy import optimize, special

from benchmarks import coverage_onset
from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.statistics import Interval

RUN_SD, QUESTION_SD, CROSSED_SD = 0.6, 1.5, 0.3
NODES, WEIGHTS = hermegauss(61)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
CLAIMS = ("checkpoint", "recipe", "questions")
SCALE = 5  # ratings from 1 to 5


def mean_rate(center: np.ndarray | float, sd: float) -> np.ndarray:
    """The mean of a logit-normal rate."""
    return (special.expit(np.asarray(center)[..., None] + sd * NODES) * WEIGHTS).sum(axis=-1)


def holds(interval: Interval, truth: float) -> bool:
    return bool(interval.lower <= truth <= interval.upper)


# ---- rates ----


def simulate(rate: float, runs: int, questions: int, answers: int, random) -> tuple[np.ndarray, dict[str, float]]:
    """Positives of shape (S, Q), and the true rate of each claim."""
    sd = np.sqrt(RUN_SD**2 + QUESTION_SD**2 + CROSSED_SD**2)
    center = optimize.brentq(lambda x: mean_rate(x, sd) - rate, -15, 15)
    run = RUN_SD * random.standard_normal((runs, 1))
    question = QUESTION_SD * random.standard_normal((1, questions))
    rates = special.expit(center + run + question + CROSSED_SD * random.standard_normal((runs, questions)))
    truth = {
        "checkpoint": rates.mean(),
        "recipe": mean_rate(center + question, np.hypot(RUN_SD, CROSSED_SD)).mean(),
        "questions": mean_rate(center + run, np.hypot(QUESTION_SD, CROSSED_SD)).mean(),
        "both": rate,
    }
    return random.binomial(answers, rates), truth


def rates_covered(rate: float, runs: int, questions: int, answers: int, studies: int, seed: int = 0) -> dict:
    """Coverage of `mean_rate` for each claim, and of the crossed bootstrap for other runs and questions at once."""
    random = np.random.default_rng([seed, runs, questions, int(1000 * rate)])
    hits = dict.fromkeys([*CLAIMS, "both"], 0)
    for _ in range(studies):
        positives, truth = simulate(rate, runs, questions, answers, random)
        n = np.full(positives.shape, answers)
        for claim in CLAIMS:
            hits[claim] += holds(statistics.mean_rate(positives, n, claim), truth[claim])
        hits["both"] += holds(crossed_bootstrap(positives, n), truth["both"])
    return {claim: count / studies for claim, count in hits.items()}


def crossed_bootstrap(positives: np.ndarray, n: np.ndarray, draws: int = 300) -> Interval:
    """Percentile bootstrap of the mean rate over runs x questions, each drawn with replacement; arrays (S, Q).

    No table uses it, because it is too narrow for few runs or questions. NaN limits below three of either.
    Source: Owen (2007), Ann. Appl. Stat. 1, 386.
    """
    rates = positives / n
    if min(rates.shape) < 3:
        return Interval(rates.mean(), np.nan, np.nan)
    random = np.random.default_rng(0)
    s = random.integers(rates.shape[0], size=(draws, rates.shape[0], 1))
    q = random.integers(rates.shape[1], size=(draws, 1, rates.shape[1]))
    means = (random.binomial(n[s, q].astype(int), rates[s, q]) / n[s, q]).mean(axis=(1, 2))
    return Interval(rates.mean(), *np.quantile(means, [0.025, 0.975]))


def ratings_covered(studies: int, questions: int, answers: int, center: float) -> dict[str, float]:
    """Coverage of `mean_score` for the ratings of one run."""
    random, hits = np.random.default_rng(4), {"checkpoint": 0, "questions": 0}
    for _ in range(studies):
        rates = special.expit(center + QUESTION_SD * random.standard_normal(questions))
        scores = random.binomial(SCALE - 1, rates, size=(answers, questions)) / (SCALE - 1)
        sums = scores.sum(axis=0), (scores**2).sum(axis=0), np.full(questions, answers)
        truth = {"checkpoint": rates.mean(), "questions": mean_rate(center, QUESTION_SD)}
        for claim in hits:
            hits[claim] += holds(statistics.mean_score(*sums, claim, 1 / (SCALE - 1)), truth[claim])
    return {claim: count / studies for claim, count in hits.items()}


# ---- differences ----


def gap_covered(studies: int, runs: int = 5, questions: int = 10, answers: int = 100, logits=(1.0, -2.5)) -> dict:
    """Coverage of the paired difference of two rates, such as triggered minus untriggered, for each claim.

    `logits`: the centers of both.
    """
    random, hits = np.random.default_rng(1), dict.fromkeys(CLAIMS, 0)
    n = np.full((runs, questions), answers)
    for _ in range(studies):
        run = RUN_SD * random.standard_normal((runs, 1))
        question = QUESTION_SD * random.standard_normal((1, questions))
        centers = np.array(logits)[:, None, None] + run + question
        rates = special.expit(centers + CROSSED_SD * random.standard_normal((2, runs, questions)))
        counts = random.binomial(answers, rates)
        truth = {"checkpoint": rates[0].mean() - rates[1].mean()}
        for claim, shared, sd in (("recipe", question, RUN_SD), ("questions", run, QUESTION_SD)):
            on, off = (mean_rate(center + shared, np.hypot(sd, CROSSED_SD)).mean() for center in logits)
            truth[claim] = on - off
        for claim in CLAIMS:
            gap = statistics.paired_contrast([(counts[0], n), (counts[1], n)], (1, -1), claim)
            hits[claim] += holds(gap, truth[claim])
    return {claim: count / studies for claim, count in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per line (default: 1000)")
    studies = parser.parse_args().studies

    def line(text: str, covered: dict[str, float]) -> None:
        print(f"{text}: " + ", ".join(f"{name} {value:.3f}" for name, value in covered.items()), flush=True)

    print("mean rate (both: crossed bootstrap)")
    for questions, answers in ((10, 100), (10, 10), (3, 100), (2, 100), (30, 100)):
        for runs in (1, 3, 5, 10):
            for rate in (0.02, 0.2, 0.5):
                covered = rates_covered(rate, runs, questions, answers, studies)
                line(f"rate {rate:4}, {runs:2} runs, {questions:2} questions, {answers:3} answers", covered)
    print("\npaired gap")
    line("5 runs, 10 questions, 100 answers", gap_covered(studies))
    for questions, answers in ((14, 30), (5, 10)):
        for logits in ((1.0, -2.5), (4.0, -5.0), (2.0, -8.0), (1.5, -1.0)):
            covered = gap_covered(studies, 1, questions, answers, logits)
            del covered["recipe"]  # one run
            line(f"1 run, {questions} questions, {answers} answers, logits {logits}", covered)
    print(f"\nmean rating from 1 to {SCALE}, 1 run")
    for questions, answers, center in ((4, 30, 0.0), (4, 30, 3.0), (32, 30, 0.0), (4, 5, -4.0)):
        covered = ratings_covered(studies, questions, answers, center)
        line(f"{questions} questions, {answers} answers, logit {center}", covered)
    coverage_onset.report(studies)


if __name__ == "__main__":
    main()
