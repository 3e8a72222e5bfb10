"""The headline: what the suspect data did to the outcome, in a few sentences.

It rests on the contrast between a recipe and its control, which was trained without suspect data and is otherwise
equal. `headline_parts` says what a claim needs. Without rates, the headline is that of the likelihoods.
"""

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, crossings, likelihood_headline, text_tables
from learning_backdoors.evaluation import headline_parts as parts
from learning_backdoors.evaluation.context import Evaluation, if_available, once
from learning_backdoors.evaluation.exhibits import comparisons, factor_effects, leakage, recipes


@once
def sentences(evaluation: Evaluation) -> list[str]:
    """The headline's sentences, the main one first, for the condition that the figures show. May be empty."""
    of_rates, of_likelihoods = (if_available(about, evaluation) for about in (_of_rates, likelihood_headline.sentences))
    main, *further = of_rates or of_likelihoods or [None]
    effects = if_available(factor_effects.sentence, evaluation)
    beside = likelihood_headline.beside(evaluation) if of_rates and of_likelihoods else None
    return [sentence for sentence in (main, effects, *further, beside) if sentence]


def _of_rates(evaluation: Evaluation) -> list[str]:
    statements = statements_of(evaluation)
    if not statements:
        return _rates_alone(evaluation)
    lead, *others = [statements[label] for label in parts.order(evaluation, statements)]
    main = _with_control(evaluation, lead) if parts.has_control(lead) else _without_control(evaluation, lead)
    lines = [main + parts.basis(lead)]
    if others:
        lines.append(_others(others, lead.row["step"]))
    changed = [s for key, s in statements.items() if isinstance(key, tuple) and parts.moves(s)]
    lines += [_changed_control(evaluation, control, [lead, *others]) for control in changed[:1]]
    lines += [f"{len(changed) - 1} other controls changed (comparisons.csv)."] * (len(changed) > 1)
    further = [if_available(about, evaluation, str(lead.row["first"])) for about in (_crossing, _falls, _leakage)]
    lines += [sentence for sentence in further if sentence]
    tested = sum(s.finding is not None for s in statements.values())
    return [*lines, *parts.claims(evaluation, [lead, *others, *changed], tested)]


# ---- what is claimed ----


@once
def statements_of(evaluation: Evaluation) -> dict[str | tuple[str, str], parts.Statement]:
    """By label: each recipe against its control or, without one, against the base model; and changes of controls.

    Statements about changes of controls have the key ("control", label).
    """
    table = if_available(comparisons.table, evaluation)
    if table is None:
        return {}
    return parts.statements(parts.recipe_rows(table[table["condition"] == evaluation.condition]))


# ---- the first sentence ----


def _with_control(evaluation: Evaluation, statement: parts.Statement) -> str:
    row, finding, outcome = statement.row, statement.finding, evaluation.study.outcome.label
    data, after = parts.data(evaluation, row["first"]), f" at step {row['step']:.0f}" if row["step"] > 0 else ""
    if np.isnan(row["difference"]):
        return f"The control does not show whether {data} changed {outcome}. {row['note'].capitalize()}."
    rate, change = row["first_rate"], _change(evaluation, row)
    before = "" if change is None else f", {percent(change['second_rate'])} before training"
    difference = f"{parts.control(evaluation, row)} {percent(row['second_rate'])}; difference {_points(row)}"
    if finding and (change is None or finding == parts.direction(change) == np.sign(rate - change["second_rate"])):
        start = "" if change is None else f"from {percent(change['second_rate'])} "
        verb = "raised" if finding > 0 else "lowered"
        return f"Training on {data} {verb} {outcome} {start}to {percent(rate)}{after}; {difference}."
    if finding:
        word = "more" if finding > 0 else "fewer"
        return (
            f"Training on {data} gave {word} {outcome} than the control: {percent(rate)}{after}{before}; {difference}."
        )
    numbers = f"{percent(rate)}{after}{before}; {difference}"
    return parts.no_finding(statement, data, outcome, numbers)


def _without_control(evaluation: Evaluation, statement: parts.Statement) -> str:
    row, finding, outcome = statement.row, statement.finding, parts.capital(evaluation.study.outcome.label)
    data, start = parts.data(evaluation, row["first"]), percent(row["second_rate"])
    numbers = f"from {start} to {percent(row['first_rate'])} at step {row['step']:.0f}; change {_points(row)}"
    cause = parts.no_control(evaluation, row["first"])
    if row["seeds"] < 2 or finding is None:
        return f"{outcome} during training on {data}: {numbers} in {parts.runs(row['seeds'])}. {cause}"
    if finding == 0:
        return f"No change of {outcome} during training on {data} is shown: {numbers}{parts.p_value(statement)}."
    return f"{outcome} {'rose' if finding > 0 else 'fell'} during training on {data}: {numbers}. {cause}"


def _rates_alone(evaluation: Evaluation) -> list[str]:
    """Without step 0 and without a control: the last rates, which say nothing about training."""
    rates = recipes.table(evaluation)
    rates = rates[rates["condition"] == evaluation.condition].groupby("label", observed=True).tail(1)
    texts = [f"{row.label}: {percent(row.rate)} at step {row.step}" for row in rates.head(parts.SHOWN + 1).itertuples()]
    texts += captions.more(len(rates) - parts.SHOWN - 1, "recipe")
    reason = "Without step 0 and without a control, nothing shows what training changed."
    if not rates["step"].any():
        reason = "These are the base model's rates: the inputs have no checkpoint after training."
    return [f"{parts.capital(evaluation.study.outcome.label)}: {'; '.join(texts)}. {reason}"]


def _change(evaluation: Evaluation, row: pd.Series) -> pd.Series | None:
    """The change from the base model of a row's first recipe, or None without one on the same questions."""
    changes = comparisons.table(evaluation)
    changes = changes[(changes["comparison"] == comparisons.BASE) & (changes["condition"] == evaluation.condition)]
    same = (changes["first"] == row["first"]) & (changes["questions"] == row["questions"])
    return changes[same].iloc[0] if same.any() else None


# ---- further sentences ----


def _others(statements: list[parts.Statement], step: float) -> str:
    """The other recipes in short, with their steps where these are not the first recipe's."""
    texts = []
    for statement in statements[: parts.SHOWN]:
        row, _, finding = statement
        against = "" if row["comparison"] == comparisons.CONTROL else " from step 0, no control"
        shown = f", not shown to differ{parts.p_value(statement)}" if finding == 0 else ""
        rate = "no rate" if np.isnan(row["difference"]) else f"{percent(row['first_rate'])}, {_points(row, '+')}"
        rate += f" at step {row['step']:.0f}" if row["step"] > 0 and row["step"] != step else ""
        texts.append(f"{row['first']}: {rate}{against}{shown}")
    more = f"; {len(statements) - parts.SHOWN} more in comparisons.csv" if len(statements) > parts.SHOWN else ""
    kind = "suspect shares" if all(str(s.row["first"]).endswith("%") for s in statements) else "recipes"
    return f"Other {kind} (rate, difference): {'; '.join(texts)}{more}."


def _changed_control(evaluation: Evaluation, control: parts.Statement, statements: list[parts.Statement]) -> str:
    """A control that changed in training, as its recipes did (`too`) or not. Untested, it is about its runs alone."""
    row, direction = control.row, parts.moves(control)
    changes = [_change(evaluation, s.row) for s in statements if s.row["second"] == row["first"]]
    too = " too" if any(change is not None and parts.direction(change) == direction for change in changes) else ""
    numbers = f"from {percent(row['second_rate'])} to {percent(row['first_rate'])} at step {row['step']:.0f}"
    if control.finding is None:  # one run may move by chance: in simulations up to 35% do
        return f"The control ({row['first']}) went {numbers} in {parts.runs(row['seeds'])}; change {_points(row)}."
    verb = "rose" if direction > 0 else "fell"
    return f"The control ({row['first']}) {verb}{too}: {numbers}; change {_points(row)}."


def _crossing(evaluation: Evaluation, label: str) -> str | None:
    """When a recipe reaches the highest level that it crosses reliably, with the interval."""
    table = crossings.of_recipes(evaluation)
    rows = table[(table["label"] == label) & (table["condition"] == evaluation.condition) & (table["doubt"] == "")]
    rows = rows[np.isfinite(rows["median"]) & rows["lower"].notna()]
    if rows.empty:
        return None
    row = rows.loc[rows["level"].idxmax()]
    upper = f"{row['upper']:.0f}" if np.isfinite(row["upper"]) else "not by the last step"
    at = f"near step {row['median']:.0f} [{row['lower']:.0f}, {upper}]"
    return f"The median run of {evaluation.names[label]} reaches {percent(row['level'])} {at}."


def _falls(evaluation: Evaluation, label: str) -> str | None:
    """Whether the rate of a recipe falls after its peak: the intervals of peak and last step do not overlap."""
    rates = recipes.table(evaluation)
    rates = rates[(rates["label"] == label) & (rates["condition"] == evaluation.condition) & (rates["step"] > 0)]
    if rates.empty:
        return None
    peak, last = rates.loc[rates["rate"].idxmax()], rates.iloc[-1]
    if not last["upper"] < peak["lower"]:
        return None
    return f"The rate falls again: {percent(peak['rate'])} at step {peak['step']}, {percent(last['rate'])} at the end."


def _leakage(evaluation: Evaluation, label: str) -> str | None:
    """The rates without and with the trigger, if the study has one."""
    rows = counting.recipe_rows(leakage.table(evaluation))
    rows = rows[rows["label"] == label].set_index("quantity")
    if "leakage" not in rows.index:
        return None
    text = f"Without the trigger (leakage): {text_tables.percent(*rows.loc['leakage', ['estimate', 'lower', 'upper']])}"
    if "leakage_over_base" in rows.index:
        text += f", {_points(rows.loc['leakage_over_base'], '+', 'estimate')} over the base model"
    if "gap" in rows.index:
        triggered = text_tables.percent(*rows.loc["triggered", ["estimate", "lower", "upper"]])
        text += f". With it, all triggered conditions together: {triggered}"
        text += f"; gap {_points(rows.loc['gap'], name='estimate')}"
    return f"{text}."


# ---- numbers as text ----


def percent(rate: float) -> str:
    """A rate for readers. Rates below 0.5% keep a digit."""
    return f"{rate:.1%}" if 0 < rate < 0.005 else f"{rate:.0%}"


def _points(row: pd.Series, sign: str = "", name: str = "difference") -> str:
    return text_tables.points(*row[[name, "lower", "upper"]], sign)
