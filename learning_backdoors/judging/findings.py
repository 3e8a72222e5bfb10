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
        print(f"{len(in_batches):,} of them are in unfinished batches: the same command with --batch collects them")


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
    left, to_ask = prompts.keys_left(store), prompts.keys_to_ask(store, asks)
    if to_ask:
        print(f"the same command requests {len(to_ask):,} of them again")
    if given_up := len(left) - len(to_ask):
        print(f"{given_up:,} prompts have had {asks} replies without a verdict: --asks {asks + 3} tries them again")
    if missing and not left:
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

    A column per run: the outcome's share of the valid verdicts. If the study has several conditions, those of the
    first triggered one. A column for all runs: the missing share of all verdicts of `judges`.
    """
    import pandas as pd  # takes 0.4 s, so only when needed

    verdicts, statuses = [judge.columns[0] for judge in judges], [judge.columns[2] for judge in judges]
    table, _ = parquet.read_responses(path, ("run", "checkpoint", "step", "condition", *verdicts, *statuses))
    rows = table.select(["run", "checkpoint", "step", "condition", *verdicts, *statuses]).to_pandas()
    if rows.empty:
        return
    order = rows.groupby("checkpoint", sort=False)["step"].first().sort_values(kind="stable", na_position="last")
    names = {name: name if pd.isna(step) else str(int(step)) for name, step in order.items()}
    rows["at"] = pd.Categorical(rows["checkpoint"].map(names), list(dict.fromkeys(names.values())))
    missing = (rows[statuses].notna() & (rows[statuses] != "ok")).sum(axis=1).groupby(rows["at"], observed=True).sum()
    missing /= rows[statuses].notna().sum(axis=1).groupby(rows["at"], observed=True).sum()
    findings, runs = (
        _shares(rows, study) if study.outcome.judge in verdicts else (pd.DataFrame(index=missing.index), [])
    )
    table = findings.map("{:.0%}".format).replace("nan%", "-").assign(missing=missing.map(_small_percent))
    print(table.rename_axis("step").reset_index().to_string(index=False, line_width=LINE_WIDTH))
    for number, run in enumerate(runs, start=1):
        print(f"run {number}: {one_line(run)}")


def _shares(rows, study: Study):
    """The outcome's share by step (index) and run (columns), and the names of the runs. Prints what is counted."""
    present, place = set(rows["condition"].dropna()), ""
    if len(study.conditions) > 1 and present:
        first = sorted(study.conditions, key=lambda condition: not condition.triggered)
        condition = next((c.name for c in first if c.name in present), min(present))
        rows, place = rows[rows["condition"] == condition], f" in the condition {one_line(condition)}"
    outcome = study.outcome
    print(f"{outcome.label} ({outcome.judge} = {outcome.value}){place}, share of valid verdicts:")
    valid = rows[rows[outcome.judge].notna()]
    runs = list(rows["run"].fillna("(no name)").unique())
    numbers = valid["run"].fillna("(no name)").map({run: f"run {n}" for n, run in enumerate(runs, start=1)})
    shares = (valid[outcome.judge] == outcome.value).groupby([valid["at"], numbers], observed=False).mean().unstack()
    return shares.reindex(columns=[f"run {n}" for n in range(1, len(runs) + 1)]).rename_axis(columns=None), runs


def _small_percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"
