"""What made a file, and whether two sets of settings agree."""

import functools
import hashlib
import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from learning_backdoors.files import command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.files.project import ROOT


def provenance(script: str, options, packages: Sequence[str]) -> dict:
    """Script, options, time (UTC), git revision and versions of `packages`, as plain JSON values."""
    return {
        "script": script,
        "options": command_line.as_json(options),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_revision(),
        "versions": {name: _version(name) for name in packages},
    }


@functools.cache  # the code that runs is that of the start
def git_revision() -> str | None:
    """The project's commit, with `-dirty` if tracked files have changed. None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def sha256(data: bytes | Path) -> str:
    """The SHA-256 of bytes, or of a file's content, in hexadecimal."""
    if isinstance(data, Path):
        with open(data, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(data).hexdigest()


# ---- comparing settings ----


def refuse_difference(path: Path, existing: dict, wanted: dict) -> None:
    """Raise UserError if `path` was made with other settings than those wanted. The message names them."""
    if words := differences(existing, wanted):
        raise UserError(f"{path} has other settings: {words}. Choose another path, or replace it with --overwrite")


def differences(existing: dict, wanted: dict) -> str:
    """The differences between two nested records in words, at most three of them; "" if they agree."""
    old, new = _flat(existing), _flat(wanted)
    words = [
        f"{name} was {_shown(old, name)}, now {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")


def _flat(settings: dict, prefix: str = "") -> dict:
    parts = [_flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in settings.items()]
    return {name: value for part in parts for name, value in part.items()}


def _shown(settings: dict, name: str) -> str:
    text = json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"
    return text if len(text) <= 60 else text[:57] + "..."
