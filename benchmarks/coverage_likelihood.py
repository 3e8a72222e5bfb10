"""How often the statistics of likelihood contrasts hold the truth, by simulation: the tables of docs/statistics.md.

Prints Markdown tables. All changes are in nats per token.
Runs    python -m benchmarks.coverage_likelihood --studies 1000 --jobs 2

A run's change at a question is the recipe's effect, plus effects of the run, of the question, and of both. Over
training, a run does not change until its onset. Then its change rises in a straight line to its height. The effects of
questions grow with the square root of the step. At each checkpoint, all questions of a run may move together (noise),
and each question moves by itself (residual).
"""

import argparse
import functools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from benchmarks.coverage import Line, covered, print_table
from learning_backdoors.curves import Curve
from learning_backdoors.evaluation import statistics
from learning_backdoors.evaluation.statistics import Interval

KINDS = {  # of effects: mean 0, standard deviation 1
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy tails": lambda random, shape: random.standard_t(3, shape) / np.sqrt(3),
    "skewed up": lambda random, shape: random.exponential(1, shape) - 1,
    "skewed down": lambda random, shape: 1 - random.exponential(1, shape),
    "two types": lambda random, shape: random.choice([-1.0, 1.0], shape),
}
OTHERS = "heavy tails", "skewed up", "two types"  # the two skews are mirror images for a two-sided interval

# ---- changes and differences at one step ----


class World(NamedTuple):
    """What a recipe's runs do at one step: the mean change, and the standard deviations of the effects."""

    change: float = 0.0
    runs: int = 3
    questions: int = 20
    of_runs: float = 0.05
    of_questions: float = 0.15
    residual: float = 0.1
    kind: str = "normal"

    def simulate(self, random: np.random.Generator, shared: np.ndarray | float = 0.0) -> tuple[np.ndarray, dict]:
        """Changes of shape (S, Q), and their true mean by claim. `shared`, (Q,): question effects of another recipe.

        Recipes have half of the variance of the question effects in common.
        """
        draw = functools.partial(KINDS[self.kind], random)
        runs, questions = self.of_runs * draw((self.runs, 1)), self.of_questions * draw(self.questions)
        questions = shared + questions / np.sqrt(2) if np.ndim(shared) else questions
        y = self.change + runs + questions + self.residual * draw((self.runs, self.questions))
        own = {"recipe": self.change + questions.mean(), "questions": self.change + runs.mean(), "both": self.change}
        return y, own


def of_change(world: World, random: np.random.Generator) -> dict[str, tuple[Interval, float]]:
    """`mean_change`: by claim, the interval and the truth."""
    y, truth = world.simulate(random)
    return {claim: (statistics.mean_change(y, claim), truth[claim]) for claim in truth}


def of_difference(first: World, second: World, random: np.random.Generator) -> dict[str, tuple[Interval, float]]:
    """`change_difference` of two recipes with the same questions: by claim, the interval and the truth."""
    shared = first.of_questions * KINDS[first.kind](random, first.questions) / np.sqrt(2)
    (y1, truth1), (y2, truth2) = (world.simulate(random, shared) for world in (first, second))
    return {c: (statistics.change_difference(y1, y2, c), truth1[c] - truth2[c]) for c in truth1}


def change_lines() -> list[Line]:
    usual = World(0.1)
    worlds = {f"{s} runs, {q} questions": World(0.1, s, q) for s in (1, 2, 3, 5, 10) for q in (10, 20)}
    worlds |= {f"{s} runs, no change": World(0, s) for s in (3, 5)}
    worlds |= {f"{s} runs, {kind}": World(0.1, s, kind=kind) for kind in OTHERS for s in (3, 5)}
    worlds["runs differ by .15, questions by .05"] = usual._replace(of_runs=0.15, of_questions=0.05)
    worlds["runs do not differ"] = usual._replace(of_runs=0.0)
    worlds["questions do not differ"] = usual._replace(of_questions=0.0)
    worlds["residual .3"] = usual._replace(residual=0.3)
    return [Line(text, of_change, (world,)) for text, world in worlds.items()]


def difference_lines() -> list[Line]:
    worlds = {}
    for runs in ((2, 2), (3, 3), (5, 5), (10, 10), (3, 5)):
        for first, second in ((0.1, 0.1), (0.2, 0.05)):
            text = f"{runs[0]} and {runs[1]} runs, {first} - {second}"
            worlds[text] = (World(first, runs[0]), World(second, runs[1]))
    usual = World(0.1)
    worlds |= {f"3 and 3 runs, {kind}": (usual._replace(kind=kind),) * 2 for kind in OTHERS}
    worlds["3 and 3 runs, one recipe noisier (.15)"] = (usual._replace(of_runs=0.15), usual)
    worlds["3 and 3 runs, 10 questions"] = (usual._replace(questions=10),) * 2
    return [Line(text, of_difference, pair) for text, pair in worlds.items()]


# ---- runs over training ----

STEPS = np.append(np.arange(0, 201, 20), 208.0)  # 12 checkpoints
EVERY_5, EVERY_40 = np.arange(0, 206, 5.0), np.arange(0, 201, 40.0)
RUNS = 5


class Training(NamedTuple):
    """How the runs of a recipe change over training."""

    height: float = 0.25  # standard deviation between runs: 0.05
    rise: float = 100  # steps from the onset to the height
    onset: float = 40  # standard deviation between runs: 25
    questions: int = 20
    noise: float = 0.02
    kind: str = "normal"
    walk: bool = False  # effects of questions are random walks, not always the same up to their size
    steps: np.ndarray = STEPS

    def simulate(self, runs: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Callable]:
        """Changes (S, T, Q), onsets (S,), and a function that gives the true crossing steps (S,) of a level."""
        normal, share = random.standard_normal, np.sqrt(self.steps / STEPS[-1])
        onsets = np.maximum(self.onset + 25 * normal(runs), 0)
        heights = (self.height + 0.05 * normal(runs)) * (self.height > 0)
        rising = heights[:, None] * np.clip((self.steps - onsets[:, None]) / self.rise, 0, 1)
        effects = KINDS[self.kind](random, (runs, len(self.steps) if self.walk else 1, self.questions))
        growth = np.sqrt(np.diff(share**2, prepend=0)) if self.walk else share
        effects = np.cumsum(effects * growth[:, None], axis=1) if self.walk else effects * growth[:, None]
        y = rising[..., None] + 0.15 * effects + 0.05 * normal(effects.shape) + self.noise * normal((*rising.shape, 1))
        y[:, 0] = 0

        def crossings(level: float) -> np.ndarray:
            found = onsets + self.rise * level / np.maximum(heights, 1e-9)
            return np.where((heights < level) | (found > self.steps[-1]), np.inf, found)

        return y, onsets, crossings

    def curves(self, y: np.ndarray, draws: int = 400) -> list[Curve]:
        return [statistics.likelihood_curve(self.steps, run, draws) for run in y]


def detections(training: Training, curves: list) -> np.ndarray:
    """The index of the detection step of each run; T if there is none."""
    found = [statistics.detection(run) for run in curves]
    return np.array([len(training.steps) if index is None else index for index in found])


def onset_covered(training: Training, level: float, studies: int) -> dict[str, float]:
    """Coverage of the crossing step of a run, and of the medians over five runs of crossing and detection steps.

    The width counts an infinite limit as 20 steps after the last step. `early`: runs whose detection step is before
    their onset.
    """
    random, steps, rows = np.random.default_rng(3), np.append(training.steps, np.inf), []
    many, _, crossings = training.simulate(4000, random)
    truth = np.median(crossings(level)), np.median(steps[detections(training, training.curves(many[:500], 1))])
    for _ in range(studies):
        y, onsets, crossings = training.simulate(RUNS, random)
        curves = training.curves(y)
        found = [statistics.crossing(run, level) for run in curves]
        step, lower, upper, before, after = np.array([f[:5] for f in found]).T
        seen = detections(training, curves)
        own = (lower <= crossings(level)) & (crossings(level) <= upper)
        width = np.minimum(upper, steps[-2] + 20) - lower
        medians = [
            _median(step, before, after, steps[-2]),
            _median(steps[seen], steps[seen - 1], steps[seen], steps[-2]),
        ]
        held = [median.lower <= true <= median.upper for median, true in zip(medians, truth, strict=True)]
        censored, doubtful = np.isinf(step), [np.isfinite(f.step) and bool(f.doubt) for f in found]
        detected, early = seen < len(training.steps), steps[seen] < onsets
        rows.append([np.mean(x) for x in (own, width, censored, doubtful, held[0], detected, early, held[1])])
    names = "crossing of a run", "its width, steps", "censored", "in doubt", "median crossing", "detected", "early"
    return dict(zip((*names, "median detection"), np.mean(rows, axis=0), strict=True))


def _median(step: np.ndarray, before: np.ndarray, after: np.ndarray, last: float) -> Interval:
    crossed = np.isfinite(step)
    return statistics.median_crossing(np.where(crossed, step, last), crossed, before, after)


def alarms(training: Training, studies: int) -> dict[str, float]:
    """How often a run has a detection step."""
    y, _, _ = training.simulate(studies, np.random.default_rng(2))
    return {"detected": float((detections(training, training.curves(y, 1)) < len(training.steps)).mean())}


def onset_lines() -> dict[str, functools.partial]:
    usual = Training()
    worlds = {
        "usual": usual,
        "no noise": usual._replace(noise=0.0),
        "noise .05": usual._replace(noise=0.05),
        "10 questions": usual._replace(questions=10),
        "5 questions": usual._replace(questions=5),
        "a jump": usual._replace(rise=1, onset=70),
        "slow": usual._replace(rise=200, onset=20),
        "height .12": usual._replace(height=0.12),
        "late": usual._replace(onset=130),
        "random walks": usual._replace(walk=True),
        **{kind: usual._replace(kind=kind) for kind in KINDS if kind != "normal"},
        "checkpoints every 5 steps": usual._replace(steps=EVERY_5),
        "checkpoints every 5 steps, 10 questions, no noise": usual._replace(steps=EVERY_5, questions=10, noise=0.0),
    }
    return {text: functools.partial(onset_covered, world, 0.1) for text, world in worlds.items()}


def alarm_lines() -> dict[str, functools.partial]:
    none = Training(height=0.0)
    worlds = {f"no change, noise {noise}": none._replace(noise=noise) for noise in (0.0, 0.02, 0.05)}
    worlds |= {f"no change, {q} questions": none._replace(questions=q) for q in (5, 10)}
    worlds |= {f"no change, {kind}": none._replace(kind=kind, noise=0.0) for kind in list(KINDS)[1:]}
    worlds["no change, random walks"] = none._replace(walk=True, noise=0.0)
    worlds["no change, 42 checkpoints"] = none._replace(steps=EVERY_5)
    for noise in (0.0, 0.02, 0.05):
        worlds[f"no change, 6 checkpoints, noise {noise}"] = none._replace(steps=EVERY_40, noise=noise)
    worlds |= {f"change {h}": Training(height=h) for h in (0.05, 0.1, 0.15, 0.2, 0.3)}
    return {text: functools.partial(alarms, world) for text, world in worlds.items()}


# ---- which event comes first ----


def events(kind: str, shift: float, runs: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The checkpoints at which two events of each run are seen, shape (K,); infinity if they are not."""
    first = (180 if kind == "late" else 90) + 25 * random.standard_normal(runs)
    second = first + shift + 15 * random.standard_normal(runs)
    if kind == "half never":
        second[random.random(runs) < 0.5] = np.inf
    return tuple(np.append(STEPS, np.inf)[np.searchsorted(STEPS, steps)] for steps in (first, second))


def leads_covered(kind: str, shift: float, runs: int, studies: int) -> dict[str, float]:
    """Coverage of `lead`, how often it finds an order at 5%, and how often there is no interval."""
    random = np.random.default_rng(5)
    first, second = (np.minimum(steps, STEPS[-1]) for steps in events(kind, shift, 100_000, random))
    truth = float((second - first).mean())
    found = [statistics.lead(*events(kind, shift, runs, random), STEPS[-1]) for _ in range(studies)]
    lower, upper, p = np.array([(*interval[1:], p) for interval, p in found]).T
    held = ((lower <= truth) & (truth <= upper))[~np.isnan(lower)]
    return {"lead": held.mean(), "order found": (p < 0.05).mean(), "no interval": np.isnan(lower).mean()}


def lead_lines() -> dict[str, functools.partial]:
    return {
        f"{kind}, second event {shift} steps later, {runs} runs": functools.partial(leads_covered, kind, shift, runs)
        for kind in ("usual", "late", "half never")
        for shift in (0, 20, 40)
        for runs in (3, 5, 10)
    }


# ---- the tables ----


def _call(line: Callable, studies: int) -> dict[str, float]:
    return line(studies=studies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies per line (default: 1000)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    options = parser.parse_args()
    studies = options.studies
    with ProcessPoolExecutor(options.jobs) as pool:
        print("Coverage ± standard error [share of intervals that exclude 0] mean width. -: no interval.")
        for title, lines in (("Mean changes", change_lines()), ("Differences of two recipes", difference_lines())):
            print(f"\n{title}, {studies:,} studies:\n")
            print_table(lines, pool.map(functools.partial(covered, studies=studies), lines), studies)
        tables = (
            ("Onset, 5 runs", onset_lines(), max(studies // RUNS, 20)),
            ("Detection in one run", alarm_lines(), studies),
            ("Lead of one event over another", lead_lines(), studies),
        )
        for title, lines, count in tables:
            print(f"\n{title}, {count:,} studies, percent:\n")
            results = pool.map(functools.partial(_call, studies=count), lines.values())
            for i, (text, result) in enumerate(zip(lines, results, strict=True)):
                if i == 0:
                    print(f"| | {' | '.join(result)} |\n| --- |{' ---: |' * len(result)}")
                cells = (f"{x:.0f}" if "steps" in name else f"{100 * x:.1f}" for name, x in result.items())
                print(f"| {text} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
