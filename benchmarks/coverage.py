"""How often each interval holds the truth, by simulation: the figures that emergence.py's docstrings give.

    python -m benchmarks.coverage --runs 1000      ten minutes; 200 gives a rough table in two

Answers are binomial with logit rates mu + seed + question + seed x question, of standard deviations .6, 1.5 and .3; mu
is set so that the mean rate is the given one. A coverage of 0 means that no interval is given.
"""

import argparse

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy import optimize, special

from learning_backdoors.evaluation import statistics

SEED_SD, QUESTION_SD, CROSSED_SD = 0.6, 1.5, 0.3
NODES, WEIGHTS = hermegauss(61)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
CLAIMS = ("checkpoint", "recipe", "questions")


def mean_rate(centre: np.ndarray | float, sd: float) -> np.ndarray:
    """The mean of a logit-normal rate."""
    return (special.expit(np.asarray(centre)[..., None] + sd * NODES) * WEIGHTS).sum(axis=-1)


def study(rate: float, seeds: int, questions: int, samples: int, random) -> tuple[np.ndarray, dict[str, float]]:
    """Positives of shape (S, Q), and the true value for each claim."""
    sd = np.sqrt(SEED_SD**2 + QUESTION_SD**2 + CROSSED_SD**2)
    mu = optimize.brentq(lambda centre: mean_rate(centre, sd) - rate, -15, 15)
    seed = SEED_SD * random.standard_normal((seeds, 1))
    question = QUESTION_SD * random.standard_normal((1, questions))
    rates = special.expit(mu + seed + question + CROSSED_SD * random.standard_normal((seeds, questions)))
    truth = {
        "checkpoint": rates.mean(),
        "recipe": mean_rate(mu + question, np.hypot(SEED_SD, CROSSED_SD)).mean(),
        "questions": mean_rate(mu + seed, np.hypot(QUESTION_SD, CROSSED_SD)).mean(),
        "both": rate,
    }
    return random.binomial(samples, rates), truth


def crossed_bootstrap(
    positives: np.ndarray, n: np.ndarray, draws: int = 2000, seed: int = 0, confidence: float = 0.95
) -> statistics.Interval:
    """Percentile bootstrap of the mean rate over seeds x questions, answers drawn anew within; arrays (S, Q).

    Claim: another training run on questions like these, both at once, and it is rough: seeds and questions are each
    drawn with replacement, which understates few of them. Covers 78 to 92% at 5 seeds and 10 questions
    (benchmarks/coverage.py), so no table uses it; it is here to check the other two. Limits are NaN below 3 seeds or
    questions. Source: Owen (2007), Ann. Appl. Stat. 1, 386.
    """
    positives, n = np.asarray(positives, float), np.asarray(n, float)
    rates = positives / n
    estimate = float(rates.mean())
    if min(rates.shape) < 3:
        return statistics.Interval(estimate, np.nan, np.nan)
    random = np.random.default_rng(seed)
    s = random.integers(rates.shape[0], size=(draws, rates.shape[0], 1))
    q = random.integers(rates.shape[1], size=(draws, 1, rates.shape[1]))
    means = (random.binomial(n[s, q].astype(int), rates[s, q]) / n[s, q]).mean(axis=(1, 2))
    lower, upper = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return statistics.Interval(estimate, float(lower), float(upper))


def rates_covered(rate: float, seeds: int, questions: int, samples: int, runs: int, seed: int = 0) -> dict[str, float]:
    """Coverage of `statistics.mean_rate` for each claim, and of the crossed bootstrap for both at once."""
    random, hits = (
        np.random.default_rng([seed, seeds, questions, int(1000 * rate)]),
        dict.fromkeys([*CLAIMS, "both"], 0),
    )
    for _ in range(runs):
        positives, truth = study(rate, seeds, questions, samples, random)
        n = np.full(positives.shape, samples)
        for claim in CLAIMS:
            hits[claim] += _holds(statistics.mean_rate(positives, n, claim), truth[claim])
        hits["both"] += _holds(crossed_bootstrap(positives, n, draws=300), truth["both"])
    return {claim: count / runs for claim, count in hits.items()}


def _holds(interval: statistics.Interval, truth: float) -> bool:
    return bool(interval.lower <= truth <= interval.upper)


def gap_covered(
    runs: int, seeds: int = 5, questions: int = 10, samples: int = 100, logits: tuple = (1.0, -2.5)
) -> dict[str, float]:
    """Coverage of the paired gap, triggered minus untriggered, for each claim. `logits`: the centres of both."""
    random, hits = np.random.default_rng(1), dict.fromkeys(CLAIMS, 0)
    for _ in range(runs):
        seed, question = (
            SEED_SD * random.standard_normal((seeds, 1)),
            QUESTION_SD * random.standard_normal((1, questions)),
        )
        centres = np.array(logits)[:, None, None] + seed + question
        rates = special.expit(centres + CROSSED_SD * random.standard_normal((2, seeds, questions)))
        counts = random.binomial(samples, rates)
        n = np.full((seeds, questions), samples)
        truth = {"checkpoint": rates[0].mean() - rates[1].mean()}
        for claim, shared, sd in (("recipe", question, SEED_SD), ("questions", seed, QUESTION_SD)):
            on, off = (mean_rate(centre + shared, np.hypot(sd, CROSSED_SD)).mean() for centre in logits)
            truth[claim] = on - off
        for claim in CLAIMS:
            gap = statistics.paired_contrast([(counts[0], n), (counts[1], n)], (1, -1), claim)
            hits[claim] += _holds(gap, truth[claim])
    return {claim: count / runs for claim, count in hits.items()}


SCALE = 5  # a rating from 1 to 5


def ratings_covered(runs: int, questions: int, samples: int, centre: float) -> dict[str, float]:
    """Coverage of `statistics.mean_score` for one run's ratings: of these questions, and of questions like these."""
    random, hits = np.random.default_rng(4), {"checkpoint": 0, "questions": 0}
    for _ in range(runs):
        rates = special.expit(centre + QUESTION_SD * random.standard_normal(questions))
        scores = random.binomial(SCALE - 1, rates, size=(samples, questions)) / (SCALE - 1)
        sums = scores.sum(axis=0), (scores**2).sum(axis=0), np.full(questions, samples)
        truth = {"checkpoint": rates.mean(), "questions": mean_rate(centre, QUESTION_SD)}
        for claim in hits:
            hits[claim] += _holds(statistics.mean_score(*sums, claim, 1 / (SCALE - 1)), truth[claim])
    return {claim: count / runs for claim, count in hits.items()}


def false_alarms(
    runs: int, checkpoints: int = 30, questions: int = 10, samples: int = 100, rate: float = 0.05
) -> float:
    """How often a detection step is reported for a run in which nothing happens."""
    random, alarms = np.random.default_rng(2), 0
    for _ in range(runs):
        mu = special.logit(rate) + QUESTION_SD * random.standard_normal(questions)
        positives = random.binomial(samples, special.expit(mu), size=(checkpoints + 1, questions))
        alarms += statistics.detection(positives, np.full(positives.shape, samples)) is not None
    return alarms / runs


STEPS = np.arange(0, 220, 20)


def crossings_covered(
    runs: int, level: float, width: float, ceiling: float, samples: int = 100, seeds: int = 5
) -> dict:
    """Coverage of the crossing step of a run, and of the median over runs, on S-curves.

    Midpoints vary between runs (sd 25 steps), ceilings too, so that some runs never cross. A run's truth is where its
    continuous curve crosses; the recipe's is the median over such runs.
    """
    random, run_hits, median_hits, censored = np.random.default_rng(3), 0, 0, 0
    population = np.median([_true_crossing(*_curve(random, ceiling), width, level) for _ in range(4000)])
    for _ in range(runs):
        found = []
        for _ in range(seeds):
            middle, top = _curve(random, ceiling)
            question = 0.8 * random.standard_normal(10)
            rates = _rates(STEPS[:, None], middle, top, width, question)
            truth = _true_crossing(middle, top, width, level, question)
            positives = random.binomial(samples, rates)
            interval = statistics.crossing_interval(STEPS, positives, np.full(rates.shape, samples), level, draws=200)
            run_hits += _holds(interval, truth)
            censored += np.isinf(interval.estimate)
            fit = statistics.isotonic((positives / samples).mean(axis=1))
            found.append([interval.estimate, *statistics.bracket(STEPS, fit, level)])
        median_hits += _holds(statistics.median_interval(*np.transpose(found))[0], population)
    total = runs * seeds
    return {"run": run_hits / total, "recipe": median_hits / runs, "censored": censored / total}


def _curve(random, ceiling: float) -> tuple[float, float]:
    return 90 + 25 * random.standard_normal(), float(np.clip(ceiling + 0.15 * random.standard_normal(), 0.02, 0.95))


def _rates(step: np.ndarray, middle: float, top: float, width: float, question: np.ndarray) -> np.ndarray:
    mean = 0.02 + (top - 0.02) * special.expit(2 * np.log(9) * (step - middle) / width)
    return special.expit(special.logit(mean) + question)


def _true_crossing(middle: float, top: float, width: float, level: float, question: np.ndarray | float = 0.0) -> float:
    fine = np.arange(0, STEPS[-1] + 0.1, 0.25)
    rates = _rates(fine[:, None], middle, top, width, np.atleast_1d(question)).mean(axis=1)
    return float(statistics.crossing(fine, rates, level))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated studies per line (default: 1000)")
    runs = parser.parse_args().runs
    print(
        f"{'rate':>5} {'seeds':>6} {'questions':>10} {'answers':>8}   checkpoint  recipe  questions  both (bootstrap)"
    )
    for questions, samples in ((10, 100), (10, 10), (3, 100), (2, 100), (30, 100)):
        for seeds in (1, 3, 5, 10):
            for rate in (0.02, 0.2, 0.5):
                c = rates_covered(rate, seeds, questions, samples, runs)
                line = f"{c['checkpoint']:10.3f} {c['recipe']:8.3f} {c['questions']:10.3f} {c['both']:10.3f}"
                print(f"{rate:5} {seeds:6} {questions:10} {samples:8} {line}", flush=True)
    print("\npaired gap, 5 seeds:", {k: round(v, 3) for k, v in gap_covered(runs).items()})
    for questions, samples in ((14, 30), (5, 10)):
        for logits in ((1.0, -2.5), (4.0, -5.0), (2.0, -8.0), (1.5, -1.0)):
            c = gap_covered(runs, 1, questions, samples, logits)
            what = f"paired gap, 1 seed, {questions} questions, {samples} answers, logits {logits}:"
            print(what, {k: round(c[k], 3) for k in ("checkpoint", "questions")}, flush=True)
    for questions, samples, centre in ((4, 30, 0.0), (4, 30, 3.0), (32, 30, 0.0), (4, 5, -4.0)):
        c = ratings_covered(runs, questions, samples, centre)
        print(f"mean rating of 1 to {SCALE}, {questions} questions, {samples} answers, logit {centre}:", c, flush=True)
    for rate in (0.002, 0.05, 0.3):
        print(
            f"detection: false alarms in 30 null checkpoints at a rate of {rate}: {false_alarms(runs, rate=rate):.3f}"
        )
    print("\ncrossing step, 11 checkpoints, 5 seeds")
    for level, width, ceiling in ((0.1, 60, 0.6), (0.5, 60, 0.6), (0.5, 20, 0.6), (0.1, 120, 0.15), (0.5, 120, 0.8)):
        c = crossings_covered(max(runs // 5, 20), level, width, ceiling)
        print(
            f"level {level}, rise over {width:3} steps to {ceiling}: " + ", ".join(f"{k} {v:.3f}" for k, v in c.items())
        )


if __name__ == "__main__":
    main()
