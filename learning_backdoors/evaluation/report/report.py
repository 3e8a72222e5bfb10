"""report.html: one file that opens from disk without a network, with a browser of the responses.

Model output is hostile text. It is escaped in the page, stored as base64 in the data, and shown through textContent. A
content security policy allows only the report's own script and style, by their hashes.
"""

import base64
import gzip
import hashlib
import html
import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import captions, counting, drawing, notes, reading
from learning_backdoors.evaluation.context import Evaluation
from learning_backdoors.evaluation.exhibits import Exhibits, summary
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.files import atomic
from learning_backdoors.study import Judge

SEED = 0  # of the random order of responses
FOLDER = Path(__file__).parent


def write(evaluation: Evaluation, exhibits: Exhibits, remarks: Sequence[str], provenance: dict, path: Path) -> None:
    """Write the report to `path`, atomically. `remarks` are the lines of `notes.notes`."""
    verdicts = evaluation.verdicts
    responses, sampling = sample(verdicts.rows, evaluation.options.report_responses)
    names = "script.js", "style.css", "template.html"
    script, style, template = ((FOLDER / name).read_text(encoding="utf-8") for name in names)
    page = string.Template(template).substitute(
        title=html.escape(verdicts.study.title),
        subtitle=html.escape(_subtitle(verdicts, provenance)),
        headline=_result(evaluation, exhibits, remarks),
        figures="".join(_figure(name, exhibits) for name in exhibits.figures),
        tables="".join(_table(name, table) for name, table in exhibits.tables.items()),
        judging=_judging(verdicts),
        provenance=_provenance(evaluation, provenance),
        sampling=html.escape(sampling),
        data=packed(browser_data(evaluation, responses)),
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
    )
    with atomic.atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# ---- the page ----


def _subtitle(verdicts: Verdicts, provenance: dict) -> str:
    rows = verdicts.rows
    counts = f"{rows['run'].nunique()} runs, {rows['step'].nunique()} steps, {rows['question'].nunique()} questions"
    return f"Study {verdicts.study.name}: {counts}, {len(rows):,} responses. Created {provenance['created']}."


def _result(evaluation: Evaluation, exhibits: Exhibits, remarks: Sequence[str]) -> str:
    """Headline, brief tables, missing verdicts, and notes."""
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in notes.headline(evaluation))
    claim = html.escape(f"Intervals are for the claim {evaluation.claim_in_words}.")
    no_rates = "<p>There are no rates of the study's outcome over training.</p>"
    parts = [f"<p class='sub'>{claim}</p><ul>{sentences}</ul>" if sentences else no_rates]
    parts += [f"<h3>{html.escape(heading)}</h3>{_rows(brief)}" for heading, brief in exhibits.briefs.values()]
    for judge in evaluation.verdicts.judges:
        lost, total = (int(rows(judge).sum()) for rows in (evaluation.verdicts.missing, evaluation.verdicts.asked))
        if lost:
            text = html.escape(f"{judge.name}: {captions.missing(lost, total)}")
            parts.append(f"<p class='{'warn' if lost > counting.MISSING_FLAG * total else 'sub'}'>{text}</p>")
    return "".join(parts + [f"<p class='warn'>{html.escape(remark)}</p>" for remark in remarks])


def _figure(name: str, exhibits: Exhibits) -> str:
    svg, caption = drawing.inline_svg(exhibits.figures[name], name)[0], html.escape(exhibits.captions[name])
    return f"<figure id='{name}' aria-label='{name}'>{svg}<figcaption>{caption}</figcaption></figure>"


def _table(name: str, table: pd.DataFrame) -> str:
    """A table that unfolds. The summary is reduced to its rows `all`; summary.csv has the others."""
    if name == "summary":
        table = table[table["question"] == summary.ALL]
    return f"<details><summary>{name}.csv ({len(table)} rows)</summary>{_rows(table)}</details>"


def _rows(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.itertuples(index=False))
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value) -> str:
    if isinstance(value, (float, np.floating)):
        text = "" if np.isnan(value) else "not crossed" if np.isinf(value) else f"{value:.4g}"
        return f"<td class='number'>{text}</td>"
    return f"<td>{html.escape(str(value))}</td>"


def _judging(verdicts: Verdicts) -> str:
    """Judge model, host, tokens and cost as the inputs' provenance states them, and the judges' prompts."""
    parts = []
    for source in verdicts.sources:
        judging = source["provenance"].get("judging") or {}
        hidden = ("options", "configuration", "versions", "prompts")  # the section Provenance has them
        facts = {key: value for key, value in judging.items() if key not in hidden}
        text = _json(facts, "This file does not say how it was judged.")
        parts.append(f"<h3>{html.escape(source['path'])}</h3>{text}")
    for judge in verdicts.judges:
        kind = " / ".join(judge.options) if judge.options else f"{judge.range[0]} to {judge.range[1]}"
        heading = html.escape(f"Prompt of the judge {judge.name} ({kind})")
        parts.append(f"<details><summary>{heading}</summary><pre>{html.escape(judge.prompt)}</pre></details>")
    return "".join(parts)


def _provenance(evaluation: Evaluation, provenance: dict) -> str:
    """The base model's precisions by input, and the full provenance of this evaluation and of each input."""
    precisions = notes.precisions(evaluation)
    parts = [f"<h3>Precision of the base model</h3>{_json(precisions, '')}"] if precisions else []
    sources = {"this evaluation": provenance} | {s["path"]: s["provenance"] for s in evaluation.verdicts.sources}
    for name, document in sources.items():
        text = _json(document, "This file has no provenance.")
        parts.append(f"<details><summary>{html.escape(name)}</summary><div class='scroll'>{text}</div></details>")
    return "".join(parts)


def _json(document: dict, empty: str) -> str:
    text = json.dumps(document, indent=1, ensure_ascii=False) if document else empty
    return f"<pre>{html.escape(text)}</pre>"


# ---- the responses ----


def sample(rows: pd.DataFrame, limit: int) -> tuple[pd.DataFrame, str]:
    """At most `limit` rows in random order, and a sentence that says how they were sampled.

    A sample has the same number of rows of each run, step, condition and question. If one of each is already more than
    `limit`, it is drawn from all rows.
    """
    shuffled = rows.iloc[np.random.default_rng(SEED).permutation(len(rows))]
    if len(rows) <= limit:
        return shuffled, f"All {len(rows):,} responses in random order (seed {SEED})."
    rank = shuffled.groupby(["run", "step", "condition", "question"], observed=True).cumcount()
    counts = np.cumsum(np.bincount(rank))
    each = int(np.searchsorted(counts, limit, side="right"))
    if each == 0:
        return shuffled.head(limit), f"{limit:,} of {len(rows):,} responses, sampled at random (seed {SEED})."
    return shuffled[rank < each], (
        f"{counts[each - 1]:,} of {len(rows):,} responses: {each} sampled at random from each run, step, condition and "
        f"question, in random order (seed {SEED})."
    )


def browser_data(evaluation: Evaluation, rows: pd.DataFrame) -> dict:
    """The data of the browser of responses: each name once, and one list per field with an entry per response."""
    verdicts = evaluation.verdicts
    texts = {question.id: question.text for question in verdicts.study.questions}
    codes = {name: rows[name].cat.remove_unused_categories() for name in ("run", "condition", "question")}
    return {
        "runs": list(codes["run"].cat.categories),
        "conditions": list(codes["condition"].cat.categories),
        "questions": [[name, texts.get(name, name)] for name in codes["question"].cat.categories],
        "steps": sorted(int(step) for step in rows["step"].unique()),
        "judges": [_judge_filter(judge) for judge in verdicts.judges],
        **{name: column.cat.codes.tolist() for name, column in codes.items()},
        "step": rows["step"].tolist(),
        "sample": rows["sample_idx"].tolist(),
        "response": reading.read_texts(evaluation.options.input, rows).fillna("").tolist(),
        "verdicts": {judge.name: _judge_verdicts(rows, judge, verdicts) for judge in verdicts.judges},
    }


def _judge_filter(judge: Judge) -> dict:
    edges = np.linspace(*judge.range, 6).tolist() if judge.range else []
    return {"name": judge.name, "options": judge.options, "bins": list(zip(edges, edges[1:], strict=False))}


def _judge_verdicts(rows: pd.DataFrame, judge: Judge, verdicts: Verdicts) -> list:
    """The index of an option, or a rating; null if the verdict is missing, false if the judge was not asked."""
    column, missing = rows[judge.name], verdicts.missing(judge).loc[rows.index]
    values = column.cat.codes if judge.options else column
    return [
        value if valid else None if lost else False
        for value, valid, lost in zip(values.tolist(), column.notna(), missing, strict=True)
    ]


def packed(document: dict) -> str:
    """Compressed JSON as base64: an alphabet without `<`, so that no text can close its element."""
    # Lone surrogates, which a model's bytes can decode to, have no UTF-8 form; JSON's ASCII escapes can carry them.
    data = json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()
