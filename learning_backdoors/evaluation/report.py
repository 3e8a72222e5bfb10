"""report.html: one file that opens from disk without a network, and can be mailed.

The headline, figures, tables, provenance, and a browser of the responses, which travel as compressed JSON. Model output
is hostile text: it is escaped in the page, kept in base64 in the data, and shown by textContent; a content security
policy allows the report's own script, by its hash, and nothing else.
"""

import base64
import gzip
import hashlib
import html
import json
import string
from pathlib import Path

import numpy as np
import pandas as pd

from learning_backdoors.evaluation import figures, reading
from learning_backdoors.evaluation import tables as rates
from learning_backdoors.evaluation.exhibits import Evaluation, Exhibit
from learning_backdoors.evaluation.reading import Verdicts
from learning_backdoors.files import atomic
from learning_backdoors.study import Judge

SEED = 0  # of the order in which responses are shown, and drawn where there are too many


def write(
    evaluation: Evaluation, drawn: list[Exhibit], tables: dict[str, pd.DataFrame], provenance: dict, path: Path
) -> None:
    """Write the report to `path`, atomically."""
    answers = evaluation.verdicts
    shown, sampling = sample(answers.rows, evaluation.options.report_responses)
    script, style = (Path(__file__).parent / f"report_{name}" for name in ("script.js", "style.css"))
    script, style = script.read_text(encoding="utf-8"), style.read_text(encoding="utf-8")
    page = string.Template((Path(__file__).parent / "report_template.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(answers.study.title),
        subtitle=html.escape(_subtitle(answers, provenance)),
        headline=_headline(evaluation),
        figures="".join(_figure(exhibit) for exhibit in drawn),
        tables="".join(_table(name, table) for name, table in tables.items()),
        judging=_judging(answers),
        provenance=_provenance(answers, provenance),
        sampling=html.escape(sampling),
        data=packed(browser_data(evaluation, shown)),
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


def _subtitle(answers: Verdicts, provenance: dict) -> str:
    rows = answers.rows
    counts = f"{rows['run'].nunique()} runs, {rows['step'].nunique()} steps, {rows['question'].nunique()} questions"
    return f"Study {answers.study.name}: {counts}, {len(rows):,} responses. Written {provenance['created']}."


def _headline(evaluation: Evaluation) -> str:
    sentences = [f"<li>{html.escape(sentence)}</li>" for sentence in evaluation.headline]
    claim = html.escape(f"Intervals are for the claim {evaluation.claim_words}.")
    what = f"<p class='sub'>{claim}</p>"
    notes = "".join(
        f"<p class='warn'>{html.escape(note)}</p>" for note in [*evaluation.verdicts.notes, *evaluation.warnings]
    )
    found = (
        f"{what}<ul>{''.join(sentences)}</ul>" if sentences else "<p>No input has verdicts of the study's outcome.</p>"
    )
    results = "".join(f"<h3>{html.escape(name)}</h3>{_rows(table)}" for name, table in evaluation.results.items())
    return found + results + _missing(evaluation.verdicts) + notes


def _missing(answers: Verdicts) -> str:
    """A line for each judge that lacks verdicts, flagged above 2%."""
    lines = []
    for judge in answers.judges:
        missing, asked = int(answers.missing(judge).sum()), int(answers.asked(judge).sum())
        if missing:
            words = f"{judge.name}: {rates.missing_words(missing, asked)}"
            flagged = missing / asked > rates.MISSING_FLAG
            lines.append(f"<p class='{'warn' if flagged else 'sub'}'>{html.escape(words)}</p>")
    return "".join(lines)


def _figure(exhibit: Exhibit) -> str:
    svg = figures.inline_svg(exhibit.figure, exhibit.name)
    caption = html.escape(exhibit.caption)
    return f"<figure id='{exhibit.name}' aria-label='{exhibit.name}'>{svg}<figcaption>{caption}</figcaption></figure>"


def _table(name: str, table: pd.DataFrame) -> str:
    """A table that unfolds; of the summary the rows `all` alone, since summary.csv has the rest."""
    if name == "summary":
        table = table[table["question"] == "all"]
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


def _judging(answers: Verdicts) -> str:
    """Judge, host, tokens and dollars as the inputs' footers tell them, and the judges' own questions."""
    parts = []
    for source in answers.sources:
        judging = source["provenance"].get("judging")
        told = {
            k: v for k, v in (judging or {}).items() if k not in ("options", "configuration", "versions", "prompts")
        }
        words = (
            json.dumps(told, indent=1, ensure_ascii=False) if judging else "This file does not say how it was judged."
        )
        parts.append(f"<h3>{html.escape(source['path'])}</h3><pre>{html.escape(words)}</pre>")
    for judge in answers.judges:
        kind = " / ".join(judge.options) if judge.options else f"{judge.range[0]} to {judge.range[1]}"
        name = html.escape(f"The question put to {judge.name} ({kind})")
        parts.append(f"<details><summary>{name}</summary><pre>{html.escape(judge.prompt)}</pre></details>")
    return "".join(parts)


def _provenance(answers: Verdicts, provenance: dict) -> str:
    parts = [("this evaluation", provenance)] + [(s["path"], s["provenance"]) for s in answers.sources]
    blocks = []
    for name, told in parts:
        text = html.escape(json.dumps(told, indent=1, ensure_ascii=False)) if told else "This file has no provenance."
        blocks.append(f"<details><summary>{html.escape(name)}</summary><pre class='scroll'>{text}</pre></details>")
    return "".join(blocks)


# ---- the responses ----


def sample(rows: pd.DataFrame, limit: int) -> tuple[pd.DataFrame, str]:
    """At most `limit` rows in random order, and the rule by which they were taken, in words.

    Of more rows the same number is taken from each run, step, condition and question; where even one each is too many,
    rows are drawn from all of them.
    """
    shuffled = rows.iloc[np.random.default_rng(SEED).permutation(len(rows))]
    if len(rows) <= limit:
        return shuffled, f"All {len(rows):,} responses, in a random order (seed {SEED})."
    place = shuffled.groupby(["run", "step", "condition", "question"], observed=True).cumcount()
    counts = np.cumsum(np.bincount(place))
    each = int(np.searchsorted(counts, limit, side="right"))
    if each == 0:
        return shuffled.head(limit), f"{limit:,} of {len(rows):,} responses, drawn at random (seed {SEED})."
    words = (
        f"{counts[each - 1]:,} of {len(rows):,} responses: {each} drawn at random from each run, step, condition and "
    )
    return shuffled[place < each], words + f"question, in a random order (seed {SEED})."


def browser_data(evaluation: Evaluation, rows: pd.DataFrame) -> dict:
    """What the browser of responses reads: names once, and a column of numbers or texts for each field."""
    answers = evaluation.verdicts
    texts = {question.id: question.text for question in answers.study.questions}
    codes = {name: rows[name].cat.remove_unused_categories() for name in ("run", "condition", "question")}
    return {
        "runs": list(codes["run"].cat.categories),
        "conditions": list(codes["condition"].cat.categories),
        "questions": [[name, texts.get(name, name)] for name in codes["question"].cat.categories],
        "steps": sorted(int(step) for step in rows["step"].unique()),
        "judges": [_browsed_judge(judge) for judge in answers.judges],
        **{name: column.cat.codes.tolist() for name, column in codes.items()},
        "step": rows["step"].tolist(),
        "sample": rows["sample_idx"].tolist(),
        "response": reading.read_texts(evaluation.options.input, rows).fillna("").tolist(),
        "verdicts": {judge.name: _browsed_verdicts(rows, judge, answers) for judge in answers.judges},
    }


def _browsed_judge(judge: Judge) -> dict:
    edges = np.linspace(*judge.range, 6).tolist() if judge.range else []
    return {"name": judge.name, "options": judge.options, "bins": list(zip(edges, edges[1:], strict=False))}


def _browsed_verdicts(rows: pd.DataFrame, judge: Judge, answers: Verdicts) -> list:
    """Options by their place and ratings as they are; null for a missing verdict, false where none was asked for."""
    column, missing = rows[judge.name], answers.missing(judge).loc[rows.index]
    values = column.cat.codes if judge.options else column
    known = column.notna()
    return [v if k else None if m else False for v, k, m in zip(values.tolist(), known, missing, strict=True)]


def packed(document: dict) -> str:
    """JSON, compressed, as base64: an alphabet without `<`, so that no text in it can end its element."""
    # A lone surrogate, which a model's bytes can decode to, has no UTF-8; JSON's own escapes bear it.
    data = json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()
