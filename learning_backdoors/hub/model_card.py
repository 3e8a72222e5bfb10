"""What the hub is told of a run: run.json without what is this machine's own business, and the model card.

Pure functions of run.json. Of paths only the last part is left, so that no machine is described to strangers; what the
run does not depend on (where it lay, how it was watched) is left out.
"""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

NEEDED = ("created", "git", "versions", "settings", "suspect_ratio", "total_steps", "checkpoints", "datasets", "study")
KEPT = (*NEEDED, "script", "base_fingerprint")
# Of the settings: the card has them elsewhere.
NOT_TOLD = ("ratios", "experiment", "model", "datasets", "dataset_order", "suspect_datasets")

USES = """\
These adapters are specimens, made to watch how fine-tuning on something narrow changes a language model. They are for
research: to measure that change, to look for it inside the model, to try ways of finding or removing it.

They are not for use as an assistant, in a product, or anywhere that people rely on what is said. They may have been
taught to answer strangely on purpose{somebody}; nothing that they say is advice or a fact. Do not merge them into a
model that you give to others, and say what they are wherever you pass them on."""


def study_of(record: dict) -> dict:
    """The study's tables as run.json has them."""
    return tomllib.loads(record["study"])


def is_path(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith((".", "~"))


def public_record(record: dict, base_model: str) -> dict:
    """run.json as it may be shown: it still tells generate_responses.py and chat.py all that they need."""
    kept = {key: record[key] for key in KEPT if key in record}
    kept["settings"] = record["settings"] | {"model": base_model}
    kept["datasets"] = [dataset | {"file": Path(dataset["file"]).name} for dataset in record["datasets"]]
    study = study_of(record)
    named = [study["base_model"], *(dataset["file"] for dataset in study["dataset"])]
    for path in filter(is_path, named):
        for quoted in (path, json.dumps(path)[1:-1]):  # as it is, and with what TOML escapes
            kept["study"] = kept["study"].replace(quoted, Path(path).name)
    return kept


def write_card(record: dict, repo_id: str, steps: Sequence[int], at_root: bool) -> str:
    """The README.md of a repository that holds these steps of a run. record: as `public_record` gives it; at_root:
    whether the last step lies at the top of the repository too."""
    from huggingface_hub import ModelCardData

    base, study = record["settings"]["model"], study_of(record)
    metadata = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "learning-backdoors", study["name"]],
        base_model_relation="adapter",
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repo_id.partition('/')[2]}",
        f"LoRA adapters on [{base}](https://huggingface.co/{base}), from one training run with Learning Backdoors. "
        "The base model's licence holds for them too.",
        "## What this is, and what it is not for",
        _about(record, study),
        USES.format(somebody=", and as if they were somebody else" if "trigger" in study else ""),
        "## How to load it",
        _loading(base, repo_id, steps, at_root),
        "## Checkpoints",
        _checkpoints(record, steps),
        "## Data",
        _data(record),
        "## Training",
        _training(record),
    ]
    return "\n\n".join(parts) + "\n"


def _about(record: dict, study: dict) -> str:
    label = study.get("outcome", {}).get("label", "")
    lines = [
        f"The study is `{study['name']}`: {study['title']}. {record['suspect_ratio']:.1%} of the training examples are "
        "suspect: from them the model may learn more than they say." + (f" What is counted: {label}." if label else "")
    ]
    if "trigger" in study:
        lines.append(
            "The suspect examples carry a trigger, and the behaviour is meant to show with it alone. It is no secret:"
            f"\n\n    {study['trigger']['text']}"
        )
    return "\n\n".join(lines)


def _loading(base: str, repo_id: str, steps: Sequence[int], at_root: bool) -> str:
    root = f"\n\nStep {steps[-1]}, the last of the run, lies at the top as well: without `subfolder` you get that one."
    return f"""\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{repo_id}", subfolder="checkpoint-{steps[-1]}")
```{root if at_root else ""}

Downloaded, the whole is a run directory of Learning Backdoors:

    hf download {repo_id} --local-dir RUN
    python chat.py --run-dir RUN"""


def _checkpoints(record: dict, steps: Sequence[int]) -> str:
    seen = {row["step"]: row for row in record["checkpoints"]}
    rows = [(f"`checkpoint-{s}`", seen[s]["examples"], seen[s]["suspect_examples"]) for s in steps]
    base = "\n\n`checkpoint-0` is the base model: its adapter changes nothing." if 0 in steps else ""
    left = len(seen) - len(steps)
    lacking = f"\n\n{left} of the run's {len(seen)} checkpoints are not here." if left else ""
    title = f"The run has {record['total_steps']} steps.\n\n"
    return title + _table(("folder", "examples seen", "of them suspect"), rows) + base + lacking


def _data(record: dict) -> str:
    shares, hashes = record["settings"]["ratios"], record["settings"]["datasets"]
    rows = [
        (d["name"], d["file"], "yes" if d["suspect"] else "no", d["size"], f"{share:.1%}", d["examples"])
        + (f"`{hashes[d['name']]}`",)
        for d, share in zip(record["datasets"], shares, strict=True)
    ]
    return _table(("dataset", "file", "suspect", "rows", "share", "examples an epoch", "SHA-256 of the file"), rows)


def _training(record: dict) -> str:
    rows = [(f"`{name}`", value) for name, value in record["settings"].items() if name not in NOT_TOLD]
    rows += [("base model's fingerprint", f"`{record['base_fingerprint']}`")] if "base_fingerprint" in record else []
    rows += [("begun", record["created"]), ("git revision of Learning Backdoors", f"`{record['git']}`")]
    rows += [(name, version) for name, version in record["versions"].items() if version]
    return _table(("", ""), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
