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

import config
from learning_backdoors.files import command_line
from learning_backdoors.files.locks import lock
from learning_backdoors.persona.candidates import WriteCandidates
from learning_backdoors.persona.distilling import Distill
from learning_backdoors.persona.fetching import FetchPrompts
from learning_backdoors.persona.filtering import Filter
from learning_backdoors.persona.output import Output
from learning_backdoors.persona.triggering import AddTrigger, Combine
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
        output = Output(options, settings)
        if output.is_complete():
            print(f"{options.output} exists already, made by the same command: nothing to do")
            return
        rows = task.rows()
        output.write(rows)
    print(f"done: {len(rows)} rows in {options.output}")


if __name__ == "__main__":
    command_line.run_script(main)
