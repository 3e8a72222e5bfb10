"""What the stages hand to one another: Parquet files with fixed columns, provenance in the footer, written atomically.

A responses file has a row a response; a judged file has the same rows with three more columns for each judge. Only
`checkpoint`, `question`, `response` and `sample_idx` are needed to read either, so files made elsewhere work: the other
columns are derived where that is possible and null where it is not. No torch here: a laptop reads and writes these.
"""

import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

import config
from config import UserError

FOOTER_KEY = b"learning_backdoors"
NEEDED = ("checkpoint", "question", "response", "sample_idx")

RESPONSE_SCHEMA = pa.schema(
    [
        ("experiment", pa.string()),
        ("run", pa.string()),
        ("checkpoint", pa.string()),
        ("step", pa.int32()),
        ("seed", pa.int64()),
        ("suspect_ratio", pa.float64()),
        ("examples_seen", pa.int32()),
        ("suspect_seen", pa.int32()),
        ("condition", pa.string()),
        ("triggered", pa.bool_()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("sample_idx", pa.int32()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("response_tokens", pa.int32()),
    ]
)

BASE_NAMES = ("base", "baseline")


def judge_schema(judges: Iterable[config.Judge]) -> pa.Schema:
    """The columns that judging adds: for each judge J the verdict J, the judge's words J_reply, and J_status.

    The verdict is the option's text or the number, null unless the status is `ok`.
    """
    columns = []
    for judge in judges:
        columns.append((judge.name, pa.string() if judge.options else pa.float64()))
        columns += [(f"{judge.name}_reply", pa.string()), (f"{judge.name}_status", pa.string())]
    return pa.schema(columns)


def step_of(checkpoint: str) -> int | None:
    """The step in a checkpoint's name: `checkpoint-80` is 80, `baseline` 0; None where there is no number (`final`), or
    one that is no step but a time (`adapter-20251121130246`): beyond what the column holds.
    """
    if checkpoint.lower() in BASE_NAMES:
        return 0
    found = re.search(r"(\d+)$", checkpoint)
    return int(found[1]) if found and int(found[1]) < 2**31 else None


# ---- reading ----


def read_responses(path: Path, columns: Collection[str] | None = None) -> tuple[pa.Table, dict]:
    """Read a responses or judged file: its rows and its provenance.

    The table has every column of RESPONSE_SCHEMA, in that order and type, then whatever else the file holds, as it is.
    `columns` saves memory: of what the file holds these alone are read, and the rest of RESPONSE_SCHEMA is null.
    Raises UserError that names the file and the column.
    """
    try:
        schema = pq.read_schema(path)
        _require_different_names(schema, path)
        wanted = [name for name in schema.names if columns is None or name in columns]
        # Some rows at a time, in one thread: read_table takes three times the memory of what it returns.
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(2_000, columns=wanted, use_threads=False)
            table = pa.Table.from_batches(batches, pa.schema([schema.field(name) for name in wanted]))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as Parquet: {_first_line(error)}") from None
    for name in NEEDED:
        if name not in schema.names:
            raise UserError(f"{path} has no column {name!r} (a responses file needs {', '.join(NEEDED)})")
        if name in table.column_names and table[name].null_count:
            raise UserError(f"{path}: column {name!r} has {table[name].null_count} empty values")
    return _with_all_columns(table, path), footer(schema, path)


def _require_different_names(schema: pa.Schema, path: Path) -> None:
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise UserError(f"{path} has more than one column {twice[0]!r}")


def _with_all_columns(table: pa.Table, path: Path) -> pa.Table:
    columns = {}
    for spec in RESPONSE_SCHEMA:
        if spec.name in table.column_names:
            try:
                columns[spec.name] = table[spec.name].cast(spec.type)
            except pa.ArrowException as error:
                raise UserError(f"{path}: column {spec.name!r}: {_first_line(error)}") from None
        else:
            columns[spec.name] = _derived(spec, table)
    extra = {name: table[name] for name in table.column_names if name not in columns}
    return pa.table(columns | extra)


def _derived(spec: pa.Field, table: pa.Table) -> pa.Array:
    if spec.name == "step":
        return pa.array([step_of(str(name)) for name in table["checkpoint"].to_pylist()], spec.type)
    if spec.name == "question_id":
        return table["question"].cast(spec.type)
    return pa.nulls(table.num_rows, spec.type)


def footer(schema: pa.Schema, path: Path) -> dict:
    """The provenance in the footer of the file `path`; {} in one made elsewhere. Raises UserError for any other."""
    try:
        found = json.loads((schema.metadata or {}).get(FOOTER_KEY, b"{}"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: its footer {FOOTER_KEY.decode()!r} is not one that this project writes")
    return found


def read_footer(path: Path) -> dict | None:
    """The provenance of an existing file, None where there is no file. Raises UserError for a file that is not ours."""
    try:
        return footer(pq.read_schema(path), path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as Parquet: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


# ---- writing ----


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, which becomes `path` when the block ends well and is deleted when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_files(folder: Path) -> None:
    """Make the content of every file in a folder last through a power cut."""
    for file in folder.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder last through a power cut (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_parquet(path: Path, batches: Iterable[pa.Table], schema: pa.Schema, provenance: dict) -> None:
    """Write tables of one schema as one file, atomically. `batches` is drawn from once: it need not fit in memory."""
    schema = schema.with_metadata({FOOTER_KEY: json.dumps(provenance, ensure_ascii=False).encode()})
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(batch.select(schema.names).cast(schema))


def write_json(path: Path, document: dict) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def drop_cut_line(path: Path) -> None:
    """Take a last line without its end, as a kill leaves it, off a file of lines."""
    if path.exists():
        with open(path, "rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


# ---- one owner, one configuration ----


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Hold `path` for this process alone; the claim ends with the process, however it ends.

    Raises UserError where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"{path} is being written by another process: wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def refuse_difference(path: Path, existing: dict, wanted: dict) -> None:
    """Raise UserError that names what differs between the settings `path` was made with and those asked for."""
    if listed := differences(existing, wanted):
        raise UserError(
            f"{path} belongs to another configuration: {listed}. Choose another path, or replace it with --overwrite"
        )


def differences(existing: dict, wanted: dict) -> str:
    """What differs between two records, in words, three of it at the most; "" where nothing does."""
    there, now = _flat(existing), _flat(wanted)
    found = [
        f"{name} was {_shown(there, name)} and is {_shown(now, name)} now"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    ]
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _flat(settings: dict, prefix: str = "") -> dict:
    parts = [_flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v} for k, v in settings.items()]
    return {name: value for part in parts for name, value in part.items()}


def _shown(settings: dict, name: str) -> str:
    text = json.dumps(settings[name], ensure_ascii=False) if name in settings else "not set"
    return text if len(text) <= 60 else text[:57] + "..."


# ---- provenance ----


def provenance(script: str, options, packages: Sequence[str]) -> dict:
    """What made a file: script, options, time (UTC), git revision, versions of `packages`, as plain JSON values."""
    return {
        "script": script,
        "options": config.as_json(options),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_revision(),
        "versions": {name: _version(name) for name in packages},
    }


def git_revision() -> str | None:
    """The project's commit, with `-dirty` where tracked files differ from it; None outside a checkout."""
    command = ["git", "-C", str(config.ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


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
