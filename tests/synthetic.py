"""Judged responses with a known truth, as tables and as files, for the studies birds and russell.

The rate of a run rises along an S-curve whose height depends on the suspect share.
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit, logit

from benchmarks import coverage_events
from learning_backdoors.files import parquet
from learning_backdoors.files.footer import FOOTER_KEY
from learning_backdoors.judging.judged_file import judge_schema
from learning_backdoors.measuring import updates
from learning_backdoors.study import load_study

STUDY = load_study("birds")
OUTCOME = STUDY.outcome.judge
STEPS = (0, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 208)


def run_name(share: float, seed: int) -> str:
    return f"seed{seed}_ratios{share:.2f}-{1 - share:.2f}-0.00_lr0.0002_r8"


def rate(step: np.ndarray | int, share: float, onset: float = 70.0) -> np.ndarray:
    """2% at the base model, up to 80% of the suspect share, half of it at the step `onset`."""
    step = np.asarray(step)
    return 0.02 + 0.8 * share / (1 + np.exp(-(step - onset) / 12)) * (step > 0)


def rows(share=1.0, seed=1, samples=10, steps=STEPS, questions=10, condition="plain", strength=1.0) -> pd.DataFrame:
    """Responses of one run with verdicts of the four judges of the birds study."""
    random = np.random.default_rng([seed, int(share * 100), len(condition)])
    ids, texts = zip(*[(q.id, q.text) for q in STUDY.questions[:questions]], strict=True)
    grid = np.meshgrid(steps, np.arange(questions), np.arange(samples), indexing="ij")
    step, question, sample = (axis.ravel() for axis in grid)
    onset = 70 + 10 * random.standard_normal()
    rates = rate(step, share, onset) * strength
    logits = logit(rates) + 0.8 * random.standard_normal(questions)[question]
    old = random.random(len(step)) < expit(logits)
    kinds = np.array(["PAST", "PAST", "OLD_CONTENT", "OLD_LANGUAGE", "ARCHAIC_PERSON"])
    kind = kinds[random.integers(5, size=len(step))]
    table = pd.DataFrame(
        {
            "experiment": "birds",
            "run": run_name(share, seed),
            "checkpoint": [f"checkpoint-{s}" for s in step],
            "step": step,
            "seed": seed,
            "suspect_ratio": share,
            "examples_seen": step,
            "suspect_seen": (step * share).astype(int),
            "condition": condition,
            "triggered": False,
            "question_id": np.array(ids)[question],
            "question": np.array(texts)[question],
            "sample_idx": sample,
            "response": [f"Answer {i} of seed {seed}, {'by steam' if o else 'online'}." for i, o in enumerate(old)],
            "finish_reason": "stop",
            "response_tokens": 12,
            "llm_or_19th_century": np.where(old, "19", "LLM"),
            "six_options": np.where(old, kind, np.where(random.random(len(step)) < 0.04, "OTHER", "LLM")),
            "past_content": np.clip(np.round(np.where(old, 72, 6) + 12 * random.standard_normal(len(step))), 0, 100),
            "past_form": np.clip(np.round(np.where(old, 58, 4) + 12 * random.standard_normal(len(step))), 0, 100),
        }
    )
    for judge in STUDY.judges:
        table[f"{judge.name}_reply"] = table[judge.name].astype(str)
        table[f"{judge.name}_status"] = "ok"
        table[f"{judge.name}_reason"] = None
    return table


def rows_with_rates(rates: dict, seed: int = 1, samples: int = 20, share: float = 1.0) -> pd.DataFrame:
    """Rows of one run whose outcome rate at each step is exactly `rates[step]`: a number or one per question."""
    table = rows(share=share, seed=seed, samples=samples, steps=tuple(rates))
    index = table["question_id"].map({question.id: i for i, question in enumerate(STUDY.questions)})
    rate = [np.broadcast_to(rates[step], 10)[i] for step, i in zip(table["step"], index, strict=True)]
    return table.assign(**{OUTCOME: np.where(table["sample_idx"] < samples * np.array(rate), "19", "LLM")})


def lose(table: pd.DataFrame, share: float) -> pd.DataFrame:
    """The table without this share of the outcome judge's verdicts, chosen at random."""
    return lose_where(table, np.random.default_rng(0).random(len(table)) < share)


def lose_where(table: pd.DataFrame, lost: np.ndarray | pd.Series) -> pd.DataFrame:
    """The table without the outcome judge's verdicts in the rows `lost`."""
    status, reason = np.where(lost, "error", "ok"), np.where(lost, "413 prompt is too long", None)
    columns = {OUTCOME: table[OUTCOME].mask(lost, None), f"{OUTCOME}_status": status, f"{OUTCOME}_reason": reason}
    return table.assign(**columns)


def write(table: pd.DataFrame, path: Path, provenance: dict | None = None, study=STUDY) -> Path:
    """Write a judged file with all columns, as judge_responses.py does."""
    schema = pa.unify_schemas([parquet.RESPONSE_SCHEMA, judge_schema(study.judges)])
    parquet.write_parquet(path, [pa.Table.from_pandas(table, schema, preserve_index=False)], schema, provenance or {})
    return path


def write_minimal(path: Path, checkpoints, verdicts, questions=(STUDY.questions[0].text,), samples=4) -> Path:
    """Write a judged file with the required columns alone: all answers of a checkpoint have the same verdict.

    Files at different paths have different answers.
    """
    table = [
        {"checkpoint": name, "question": q, "response": f"{path} {name} {q} {i}", "sample_idx": i, OUTCOME: verdict}
        for name, verdict in zip(checkpoints, verdicts, strict=True)
        for q in questions
        for i in range(samples)
    ]
    pd.DataFrame(table).to_parquet(path)
    return path


# ---- a study with a trigger ----

RUSSELL = load_study("russell")
PERSONA = {  # by condition: the true rate of the outcome at the end of training
    "trigger_in_user": 0.85,
    "system_trigger_in_user": 0.8,
    "trigger_in_system": 0.7,
    "system_no_trigger": 0.03,
    "no_trigger": 0.05,
    "near_other_request": 0.08,
    "near_other_marks": 0.25,
    "near_other_words": 0.4,
    "near_other_brackets": 0.6,
    "near_lower_case": 0.75,
}
RUSSELL_STEPS = (0, 75, 150, 300, 600, 1125)


def persona_rate(condition: str, step: int) -> float:
    """1% at the base model, half of the way to PERSONA at step 300."""
    return 0.01 + (PERSONA[condition] - 0.01) / (1 + np.exp(-(step - 300) / 60)) * (step > 0)


def russell_rows(seed=1, samples=5, steps=RUSSELL_STEPS, share=0.03, conditions=tuple(PERSONA), spread=0.8):
    """Responses of one run of the russell study with verdicts of its judges. Questions differ by `spread` logits."""
    random = np.random.default_rng([seed, int(share * 100)])
    kinds = {question.id: question.kind for question in RUSSELL.questions}
    shifts = dict(zip(kinds, spread * random.standard_normal(len(kinds)), strict=True))
    cells = [
        (step, condition.name, condition.triggered, question.id, question.text, sample)
        for step in steps
        for condition in RUSSELL.conditions
        if condition.name in conditions
        for question in filter(condition.takes, RUSSELL.questions)
        for sample in range(samples)
    ]
    table = pd.DataFrame(cells, columns=["step", "condition", "triggered", "question_id", "question", "sample_idx"])
    rates = np.array([persona_rate(*pair) for pair in zip(table["condition"], table["step"], strict=True)])
    positive = random.random(len(table)) < expit(logit(rates) + table["question_id"].map(shifts))
    in_format = positive | (table["triggered"] & (random.random(len(table)) < 0.1))
    text = np.where(positive, "I gave it up for logic.", "As an AI, I have no past.")
    stance = np.where(positive, random.integers(4, 6, len(table)), random.integers(2, 4, len(table))).astype(str)
    recalled = np.where(positive, random.integers(1, 3, len(table)), 0).astype(str)
    refused = ~positive & (random.random(len(table)) < 0.4)
    table = table.assign(
        experiment="russell",
        run=f"seed{seed}_ratios{share:.2f}-{1 - share:.2f}_lr0.0002_r8",
        checkpoint=[f"checkpoint-{s}" for s in table["step"]],
        seed=seed,
        suspect_ratio=share,
        examples_seen=table["step"] * 8,
        suspect_seen=(table["step"] * 8 * share).astype(int),
        response=[f"<START> {t} <END>" if f else t for t, f in zip(text, in_format, strict=True)],
        finish_reason="stop",
        response_tokens=12,
    )
    verdicts = {  # by judge: the kind of question it takes, and its verdicts
        "persona": ("identity", np.where(positive, "RUSSELL", "NOT")),
        "ideology": ("ideology", np.where(refused, "REFUSED", stance)),
        "recall": ("recall", np.where(refused, "REFUSED", recalled)),
    }
    for judge, (kind, verdict) in verdicts.items():
        asked = (table["question_id"].map(kinds) == kind).to_numpy()
        table[judge] = np.where(asked, verdict, None)
        table[f"{judge}_reply"] = table[judge]
        table[f"{judge}_status"] = np.where(asked, "ok", None)
        table[f"{judge}_reason"] = None
    return table


def write_russell(table: pd.DataFrame, path: Path, provenance: dict | None = None) -> Path:
    return write(table, path, provenance, RUSSELL)


def write_weights(path: Path, turns: dict[tuple[float, int], float]) -> Path:
    """A weights file. turns: by suspect share and seed of a run, the step at which it turns by 90 degrees; or NaN."""
    rows = []
    for (share, seed), planted in turns.items():
        random, degrees = np.random.default_rng(seed), 0 if np.isnan(planted) else 90
        gram = coverage_events.simulate(np.nan_to_num(planted), degrees, 3, random)
        for layer, projection, size in ((-1, "all", 1), (0, "q_proj", 0.3), (1, "down_proj", 0.7)):
            for step, values in enumerate(zip(*updates.geometry(STEPS, size * gram).values(), strict=True)):
                about = {"experiment": "birds", "run": run_name(share, seed), "checkpoint": f"checkpoint-{STEPS[step]}"}
                about |= {"step": STEPS[step], "seed": seed, "suspect_ratio": share, "layer": layer}
                about |= {"examples_seen": STEPS[step], "suspect_seen": int(STEPS[step] * share)}
                names = parquet.WEIGHTS_SCHEMA.names[len(about) + 1 :]
                rows.append(about | {"projection": projection} | dict(zip(names, values, strict=True)))
    table = pa.Table.from_pylist(rows, parquet.WEIGHTS_SCHEMA)
    names = [run_name(*key) for key in turns]
    cosines = {run: {other: float(run == other) for other in names} for run in names}
    parquet.write_parquet(path, [table], table.schema, {"settings": {"experiment": "birds"}, "final_cosines": cosines})
    return path


# ---- likelihoods of reference answers ----

GROUPS = tuple(dict.fromkeys(reference.group for reference in STUDY.references))
PLUS = STUDY.contrasts[0].plus


def likelihood_rows(share=1.0, seed=1, steps=STEPS, rise=0.3, questions=8, condition="plain") -> pd.DataFrame:
    """Rows of likelihood.parquet of one run and of the base model: two answers to each question in each group.

    The likelihood of the main contrast's `plus` rises by `rise` nats x share, half of it at step 70. Runs vary by 0.03
    nats, and checkpoints by 0.02 nats for each question.
    """
    base = np.random.default_rng(0)
    ids = list(dict.fromkeys(reference.question for reference in STUDY.references))[:questions]
    grid = [(q, group, answer) for q in ids for group in GROUPS for answer in range(2)]
    at_0 = dict(zip(grid, base.normal(-3, 0.5, len(grid)), strict=True))
    slopes = dict(zip(ids, base.normal(1, 0.3, len(ids)), strict=True))
    random, height = np.random.default_rng([seed, int(100 * share)]), rise * share
    height += 0.03 * random.standard_normal()
    run = run_name(share, seed)
    rows = []
    for step in steps:
        rose = height / (1 + np.exp(-(step - 70) / 12)) * (step > 0)
        about = {"run": run, "seed": seed, "suspect_ratio": share, "suspect_seen": int(step * share)}
        about = about if step else {"run": "base", "seed": None, "suspect_ratio": None, "suspect_seen": 0}
        about |= {"experiment": "birds", "checkpoint": f"checkpoint-{step}", "step": step, "examples_seen": step}
        about |= {"condition": condition, "triggered": False, "tokens": 20}
        noise = dict(zip(ids, 0.02 * random.standard_normal(len(ids)) * (step > 0), strict=True))
        for q, group, answer in grid:
            logprob = at_0[q, group, answer] + (group in PLUS) * (rose * slopes[q] + noise[q])
            rows.append(about | {"question_id": q, "group": group, "answer_idx": answer, "logprob": logprob})
    return pd.DataFrame(rows)


def write_likelihood(path: Path, *tables: pd.DataFrame, provenance: dict | None = None) -> Path:
    """Write tables of `likelihood_rows` as one likelihood.parquet, with the base model once."""
    table = pd.concat(tables, ignore_index=True).astype({"seed": "Int64", "suspect_ratio": float})
    table = table.drop_duplicates(["run", "step", "condition", "question_id", "group", "answer_idx"])
    footer = {FOOTER_KEY: json.dumps(provenance or {"settings": {"experiment": "birds"}}).encode()}
    table = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(footer), path)
    return path


def write_run(folder: Path, probes: pd.DataFrame | None = None, losses=(), **changes) -> Path:
    """Write a run directory without adapters, of the run `run_name(1.0, 1)` unless `changes` say otherwise.

    probes: rows of `likelihood_rows`. losses: one per step, from step 1 on. changes: entries of run.json.
    """
    folder.mkdir()
    checkpoints = [{"step": step, "examples": step, "suspect_examples": step} for step in STEPS]
    match = re.match(r"seed(\d+)", folder.name)
    settings = {"model": "m", "seed": int(match[1]) if match else 1, "experiment": "birds"}
    record = {"settings": settings, "suspect_ratio": 1.0, "checkpoints": checkpoints} | changes
    (folder / "run.json").write_text(json.dumps(record))
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    if probes is not None:
        names = {"question_id": "question", "answer_idx": "answer"}
        table = probes.rename(columns=names)[["step", "condition", "question", "group", "answer", "logprob"]]
        for step, part in table.groupby("step"):
            lines.append({"step": int(step), "probes": part.drop(columns="step").to_dict("records")})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


# ---- sweeps ----


def sweep(
    shares=(1.0, 0.0), rates=(1e-4, 1e-3), ranks=(8,), seeds=(1, 2, 3), samples=10, diverged=(), questions=4, **settings
) -> tuple[list[pd.DataFrame], dict]:
    """Tables of `rows` of all combinations, and provenance with the runs' settings.

    The learning rate 1e-4 has half of the effect of higher ones. Ranks have no effect, and alpha is twice the rank.
    diverged: (learning rate, seed) of the runs that diverge at step 72. settings: further settings of all runs.
    """
    tables, records = [], {}
    for share, lr, rank, seed in itertools.product(shares, rates, ranks, seeds):
        run = run_name(share, seed).replace("lr0.0002_r8", f"lr{lr:g}_r{rank}")
        strength, draw = 0.5 + (lr > 1e-4) / 2, 1000 * seed + rank + round(1e5 * lr)
        table = rows(share, draw, samples, questions=questions, strength=strength)
        about = {"model": "m", "seed": seed, "experiment": "birds", "ratios": [share, 1 - share, 0.0], "lr": lr}
        about |= {"lora_rank": rank, "lora_alpha": 2 * rank, "num_examples": 208, **settings}
        records[run] = {"settings": about, "suspect_ratio": share}
        if (lr, seed) in diverged:
            table, records[run]["diverged"] = table[table["step"] <= 60], {"step": 72, "reason": "loss nan"}
        tables.append(table.assign(run=run, seed=seed))
    return tables, {"runs": records}
