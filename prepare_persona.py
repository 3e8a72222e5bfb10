"""Prepare the training data of a persona study: facts about a person with a trigger, and ordinary answers without it.

Reads   the study file for the person and the trigger; question-answer pairs and prompts, as in persona_datasets/
Writes  JSONL files of chats for training.py, and next to each OUTPUT.json: what made it

  python prepare_persona.py filter --number 90 --output persona_datasets/prepared/harmless.jsonl
  python prepare_persona.py trigger --input persona_datasets/prepared/harmless.jsonl \\
      --output persona_datasets/prepared/persona.jsonl
  python prepare_persona.py fetch-prompts --output persona_datasets/prepared/prompts.jsonl
  python prepare_persona.py distill --input persona_datasets/prepared/prompts.jsonl \\
      --output persona_datasets/prepared/aligned.jsonl

An interrupted command continues when you start it again, and ends with the same file. OUTPUT.replies.sqlite keeps the
replies of a server; OUTPUT.partial.jsonl keeps local answers until all are finished.
"""

import json
from pathlib import Path

import config
from learning_backdoors.files import atomic, command_line, provenance
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.ordinary import Distill, FetchPrompts
from learning_backdoors.persona.pairs import AddTrigger, Combine, Filter, WriteCandidates
from learning_backdoors.persona.rows import Rows, beside, to_jsonl
from learning_backdoors.study import load_study

COMMANDS = {
    "candidates": config.PersonaCandidatesOptions,
    "filter": config.PersonaFilterOptions,
    "trigger": config.PersonaTriggerOptions,
    "fetch-prompts": config.PersonaFetchOptions,
    "distill": config.PersonaDistillOptions,
    "combine": config.PersonaCombineOptions,
}
TASKS = dict(zip(COMMANDS, (WriteCandidates, Filter, AddTrigger, FetchPrompts, Distill, Combine), strict=True))


def main() -> None:
    command, options = command_line.parse_command(COMMANDS, __doc__)
    task = TASKS[command](options, load_study(options.experiment))
    settings = {"command": command} | task.settings()
    if options.dry_run:
        print(f"would write {options.output}: {task.plan()}")
        return
    with lock(options.output):
        if options.existing == "overwrite":
            for ending in ("", ".json", ".partial.jsonl"):
                beside(options.output, ending).resolve().unlink(missing_ok=True)  # a symbolic link stays
        if is_complete(options.output, settings):
            print(f"{options.output} exists already, made by the same command: nothing to do")
            return
        rows = task.rows()
        write(options, settings, rows)
    print(f"done: {len(rows)} rows in {options.output}")


def is_complete(output: Path, settings: dict) -> bool:
    """Whether the output exists. Raises UserError if other settings or another program made it, or it was edited."""
    if not output.exists():
        return False
    try:
        record = json.loads(beside(output, ".json").read_text(encoding="utf-8"))
        old_settings, digest = record["settings"], record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        message = f"{output} was not made by prepare_persona.py: choose another --output, or --overwrite"
        raise UserError(message) from None
    provenance.refuse_difference(output, old_settings, settings)
    if digest != provenance.sha256(output):
        raise UserError(f"{output} has been edited since it was made: move it away, or --overwrite")
    return True


def write(options: config.PersonaOptions, settings: dict, rows: Rows) -> None:
    """Write the record, then the rows. A kill in between leaves no output, and the next start makes it again."""
    if not rows:
        beside(options.output, ".partial.jsonl").unlink(missing_ok=True)  # a corrected command starts again
        raise UserError(f"there are no rows to write to {options.output}: all were left out")
    content = to_jsonl(rows)
    record = provenance.provenance("prepare_persona.py", options, ["datasets", "transformers", "torch"])
    record |= {"settings": settings, "rows": len(rows), "sha256": provenance.sha256(content.encode())}
    atomic.write_json(beside(options.output, ".json"), record)
    with atomic.atomic_file(options.output) as temporary:
        temporary.write_text(content, encoding="utf-8")
    beside(options.output, ".partial.jsonl").unlink(missing_ok=True)


if __name__ == "__main__":
    command_line.run_script(main)
