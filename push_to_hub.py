"""Push a run's adapters to the Hugging Face hub, with a model card.

Reads   a run directory of training.py; the token from HF_TOKEN, .env or `hf auth login`
Writes  a model repository, in one commit: README.md (the model card), run.json, checkpoint-N/ for each step, and the
        last step at the top level too

  python push_to_hub.py --run-dir outputs/RUN --repo-id USER/NAME --create-repo --dry-run

A repository holds one run. Files already on the hub are skipped, so the same command continues an interrupted push.
Optimizer state, local paths and machine names are never sent.
"""

from collections.abc import Sequence

from config import PushOptions
from learning_backdoors.files import command_line
from learning_backdoors.hub.repository import Repository, RepositoryFile, SharedRun
from learning_backdoors.models import hub_errors


def main() -> None:
    options = command_line.parse(PushOptions, __doc__)
    from huggingface_hub.utils import validate_repo_id  # after parsing, so that --help works without it

    with hub_errors.as_user_errors(f"--repo-id {options.repo_id}", missing=""):
        validate_repo_id(options.repo_id)
    run = SharedRun(options.run_dir, options.step, options.base_model)
    if options.dry_run:
        show(options, run.files(options.repo_id, run.steps))
        return

    repository = Repository(options.repo_id, create=options.create_repo, private=options.visibility == "private")
    repository.refuse_another_run(run.record)
    files = run.files(options.repo_id, sorted(repository.steps.union(run.steps)))
    changed = [file for file in files if not repository.has(file)]
    if changed:
        print(f"pushing to {options.repo_id} ({'private' if repository.private else 'public'}):", flush=True)
        print_sizes(changed)
        repository.commit(changed, run.steps)
    print(f"{len(files) - len(changed)} of {len(files)} files were already on the hub")
    print(f"done: {repository.url}")


def show(options: PushOptions, files: Sequence[RepositoryFile]) -> None:
    """Print what a push would send. Needs no network: files already on the hub are listed too."""
    from huggingface_hub import constants

    condition = f"created as {options.visibility} if it does not exist" if options.create_repo else "must exist"
    print(f"would push to {options.repo_id} on {constants.ENDPOINT} ({condition}):")
    print_sizes(files)
    print("\nREADME.md, the model card:\n")
    print(files[0].content.decode(), end="")


def print_sizes(files: Sequence[RepositoryFile]) -> None:
    for file in files:
        print(f"  {file.size:>14,}  {file.path}")
    print(f"  {sum(file.size for file in files):>14,}  bytes in {len(files)} file{'s' if len(files) > 1 else ''}")


if __name__ == "__main__":
    command_line.run_script(main)
