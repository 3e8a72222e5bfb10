"""What is printed at the end: which verdicts are missing and why, and what the judges found by run and step."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from learning_backdoors.files import parquet
from learning_backdoors.files.terminal_text import one_line
from learning_backdoors.judging.api.store import CallStore
from learning_backdoors.judging.prompts import PromptsOfFile
from learning_backdoors.study import Judge, Study

LINE_WIDTH = 110  # wider tables are printed in parts

# ---- verdicts ----


def print_left(output: Path, prompts: PromptsOfFile, store: CallStore, asks: int) -> None:
    """Print what is left to request after a run that did not reach its end."""
    state = "not changed" if output.exists() else "not written"
    print(f"{len(prompts.keys_to_ask(store, asks)):,} verdicts still to request; {output} was {state}")
    if in_batches := store.pending_keys().intersection(prompts.keys_left(store)):
        print(f"{len(in_batches):,} more are in unfinished batches: the same command with --batch collects them")


def print_verdicts(output: Path, counts: Counter, prompts: PromptsOfFile, store: CallStore, asks: int) -> None:
    """Print how many verdicts there are, and how many are missing, by judge and status, with the commonest reason.

    counts: the number of verdicts by (judge, status, reason).
    """
    missing: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for (judge, status, reason), count in counts.items():
        if status != "ok":
            missing[judge, status][reason] += count
    total_missing = sum(reasons.total() for reasons in missing.values())
    print(f"{counts.total() - total_missing:,} verdicts in {output}, {total_missing:,} missing")
    for (judge, status), reasons in sorted(missing.items()):
        reason, count = reasons.most_common(1)[0]
        print(f"  {judge}: {reasons.total():,} {status} ({count:,} of them: {one_line(reason)[:200]})")
    attempts, to_ask = store.attempts(), set(prompts.keys_to_ask(store, asks))
    given_up = [attempts[key] for key in prompts.keys_left(store) if key not in to_ask]
    if to_ask:
        print(f"the same command requests {len(to_ask):,} of them again")
    if given_up:
        remedy = f"--asks {max(given_up) + 3} tries them again"
        print(f"{len(given_up):,} prompts have had up to {max(given_up)} replies without a verdict: {remedy}")
    if missing and not to_ask and not given_up:
        print("their replies are stored, but none is a valid verdict in the current study")


def missing_share(counts: Counter) -> float:
    """The largest share of missing verdicts that a judge has. counts: verdicts by (judge, status, reason)."""
    total, missing = Counter(), Counter()
    for (judge, status, _), count in counts.items():
        total[judge] += count
        missing[judge] += count * (status != "ok")
    return max((missing[judge] / total[judge] for judge in total), default=0.0)


# ---- findings ----


def print_findings(path: Path, study: Study, judges: Sequence[Judge]) -> None:
    """Print a table with a row per step of a judged file, in percent.

    A column per run: the outcome's share of the valid verdicts, without those that the outcome excludes. If the study
    has several conditions, those of the first triggered one. A column for all runs: the missing share of all verdicts
    of `judges`.
    """
    import pandas as pd  # takes 0.4 s, so only when needed

    statuses = [judge.columns[2] for judge in judges]
    outcomes = [study.outcome.judge] if study.outcome.judge in [judge.name for judge in judges] else []
    names = ["run", "checkpoint", "step", "condition", *outcomes, *statuses]
    rows = parquet.read_responses(path, names)[0].select(names).to_pandas()
    if rows.empty:
        return
    rows["run"] = rows["run"].fillna("(no name)")
    runs = {name: f"run {number}" for number, name in enumerate(rows["run"].unique(), start=1)} if outcomes else {}
    rows = rows.sort_values("step", kind="stable")  # rows without a step come last, under their checkpoint's name
    rows["at"] = rows["step"].astype("Int64").astype(str).where(rows["step"].notna(), rows["checkpoint"])
    verdicts = rows.melt("at", statuses).dropna()
    missing = (verdicts["value"] != "ok").groupby(verdicts["at"]).mean().map(_small_percent)
    shares = _shares(rows, study).rename(columns=runs) if outcomes else pd.DataFrame(index=missing.index)
    table = shares.map("{:.0%}".format).reindex(index=rows["at"].unique(), columns=[*runs.values()])
    table = table.assign(missing=missing).fillna("-").replace("nan%", "-")
    print(table.rename_axis("step").reset_index().to_string(index=False, line_width=LINE_WIDTH))
    for name, number in runs.items():
        print(f"{number}: {one_line(name)}")


def _shares(rows, study: Study):
    """The outcome's share of the valid verdicts by step (index) and run (columns). Prints what is counted."""
    outcome, present, place = study.outcome, set(rows["condition"].dropna()), ""
    if len(study.conditions) > 1 and present:
        first = sorted(study.conditions, key=lambda condition: not condition.triggered)
        condition = next((c.name for c in first if c.name in present), min(present))
        rows, place = rows[rows["condition"] == condition], f" in the condition {one_line(condition)}"
    print(f"{outcome.label} ({outcome.judge} = {outcome.value}){place}, share of valid verdicts:")
    valid = rows[rows[outcome.judge].notna() & ~rows[outcome.judge].isin(outcome.exclude)]
    return (valid[outcome.judge] == outcome.value).groupby([valid["at"], valid["run"]]).mean().unstack()


def _small_percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"
