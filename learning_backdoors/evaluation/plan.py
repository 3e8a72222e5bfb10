"""Plan a study: the power to find a difference between two recipes, its interval's width, and the judge calls.

Reads   the study's TOML file, for the numbers of questions, conditions and judges
Runs    python -m learning_backdoors.evaluation.plan --rates 0.05 0.3 --runs 3

Studies are simulated and evaluated as evaluate.py does it. The logit of a cell's rate is center + question + run +
noise, each normal with the sd that the options give. Both recipes are asked the same questions.
"""

import bisect
import functools
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from config import PlanningOptions
from learning_backdoors.evaluation import statistics
from learning_backdoors.files import command_line
from learning_backdoors.study import Study, load_study

SIZES = {  # what can be changed: the numbers that are tried
    "runs": [*range(2, 31)],
    "questions": [*range(2, 10), *range(10, 30, 2), *range(30, 101, 10)],
    "answers": [1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000],
}
QUANTILES = special.ndtri((np.arange(400) + 0.5) / 400)  # of the normal distribution
LETTERS_PER_TOKEN, RESPONSE_TOKENS, REPLY_TOKENS = 4, 400, 8  # a rough count, as in docs/performance.md


class Simulated(NamedTuple):
    """Of many simulated studies: how often the interval is above 0, its mean width, and the number of studies."""

    power: float
    width: float
    studies: int

    @property
    def error(self) -> float:
        """The standard error of `power`."""
        return float(np.sqrt(self.power * (1 - self.power) / self.studies))


def main() -> None:
    options = command_line.parse(PlanningOptions, __doc__)
    study = load_study(options.experiment)
    sizes = {"runs": options.runs, "questions": options.questions or len(study.questions), "answers": options.answers}
    simulated = functools.partial(simulate, options=options)
    measured = simulated(options.rates, **sizes)
    low, high = options.rates
    print(f"Control {low:.1%}, suspect {high:.1%}, difference {100 * (high - low):.1f} points; claim: {options.claim}")
    print(f"{options.runs} runs per recipe, {sizes['questions']} questions, {options.answers} answers per question\n")
    print(f"width of the 95% interval   {100 * measured.width:.0f} points on average")
    print(f"power                       {measured.power:.0%} ± {100 * measured.error:.0f}")
    found = detectable(options, sizes)
    print(f"detectable difference       {describe(found, low)} with a power of {options.power:.0%}")
    print(f"cost                        {cost(study, options, sizes)}\n")

    print(f"For {goal(options)}, change one of these:")
    for name in SIZES:
        number = needed(name, options, sizes)
        text = cost(study, options, sizes | {name: number}) if number else "is not enough"
        print(f"{name:10} {number or f'up to {SIZES[name][-1]}':<10} {text}")


def simulate(rates: tuple[float, float], runs: int, questions: int, answers: int, options) -> Simulated:
    """Draw studies of two recipes with these mean rates, control first, and evaluate their difference."""
    random, shape = np.random.default_rng(options.seed), (options.studies, runs, questions)
    of_questions = options.question_sd * random.standard_normal((options.studies, 1, questions))
    counts = []
    for rate in rates:
        logits = center(rate, options) + of_questions + options.run_sd * random.standard_normal((*shape[:2], 1))
        logits += options.cell_sd * random.standard_normal(shape)
        counts.append(random.binomial(answers, special.expit(logits)))
    n = np.full(shape[1:], answers)
    intervals = [
        statistics.rate_difference((suspect, n), (control, n), options.claim)
        for control, suspect in zip(*counts, strict=True)
    ]
    _, lower, upper = np.transpose(intervals)
    return Simulated(float((lower > 0).mean()), float((upper - lower).mean()), options.studies)


def center(rate: float, options) -> float:
    """The logit at which the mean rate over all questions and runs is `rate`."""
    effects = QUANTILES * np.sqrt(options.run_sd**2 + options.question_sd**2 + options.cell_sd**2)
    return optimize.brentq(lambda x: special.expit(x + effects).mean() - rate, -60, 60)


def detectable(options, sizes: dict[str, int]) -> float:
    """The lowest suspect rate above the control's that is found with the wanted power; NaN if none is."""
    control = options.rates[0]
    rates = special.expit(np.linspace(special.logit(control), special.logit(0.999), 60)[1:])
    first = bisect.bisect_left(
        rates, True, key=lambda rate: simulate((control, rate), **sizes, options=options).power >= options.power
    )
    return float(rates[first]) if first < len(rates) else np.nan


def describe(rate: float, control: float) -> str:
    return "none" if np.isnan(rate) else f"{100 * (rate - control):.0f} points ({rate:.0%} against {control:.0%})"


def needed(name: str, options, sizes: dict[str, int]) -> int | None:
    """The least number of runs, questions or answers that reaches the goal, the others unchanged; None if none does."""

    def reached(number: int) -> bool:
        result = simulate(options.rates, **sizes | {name: number}, options=options)
        return result.width <= options.width if options.width else result.power >= options.power

    first = bisect.bisect_left(SIZES[name], True, key=reached)
    return SIZES[name][first] if first < len(SIZES[name]) else None


def goal(options) -> str:
    return f"a width of {100 * options.width:.0f} points" if options.width else f"a power of {options.power:.0%}"


def cost(study: Study, options, sizes: dict[str, int]) -> str:
    """Judge calls and tokens of both recipes and the base model, which is asked once."""
    prompts = [
        len(judge.prompt) / LETTERS_PER_TOKEN + RESPONSE_TOKENS
        for judge in study.judges
        for condition in study.conditions
        for question in study.questions
        if judge.takes(question) and condition.takes(question)
    ]
    models = 2 * sizes["runs"] * options.checkpoints + 1
    answers = models * sizes["answers"] * sizes["questions"] / len(study.questions)
    calls, tokens = answers * len(prompts), answers * sum(prompts)
    return f"{calls:,.0f} judge calls, {tokens / 1e6:,.0f} million tokens in, {calls * REPLY_TOKENS / 1e6:,.1f} out"


if __name__ == "__main__":
    command_line.run_script(main)
