"""Adapters that a server exports, in the form of the project's own checkpoints. Needs no torch."""

import functools
import json
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from config import TINKER_ALPHA
from learning_backdoors.files import atomic, command_line
from learning_backdoors.files.errors import UserError
from learning_backdoors.models.checkpoints import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROJECTIONS
from learning_backdoors.tinker_api.service import Service, api_key, wait

FILES = {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
ENDS_EARLY = (EOFError, HTTPException, tarfile.TarError, zlib.error)  # what is raised when a download ends early
TRIES, TIMEOUT = 5, 60  # of a download; seconds without a byte
MATRIX = re.compile(r"base_model\.model\.model\.layers\.\d+\.\w+\.(\w+)\.lora_[AB]\.weight")
note_once = functools.cache(command_line.note)
REMEDY = "report it to the server's operator, or use another server"
UNEMBEDDING = re.compile(r"(lm_head|unembed_tokens|embed_tokens)\.")


def download_adapter(service: Service, path: str, folder: Path, base_model: str, rank: int) -> None:
    """Write the adapter at `path` on the server into `folder`, with a configuration for PEFT.

    path: of an export, or of sampler weights: SkyRL exports nothing, but has an archive of these. A server without
    archives leaves the folder empty, and a note says so. Raises UserError if the files are not of the adapter that was
    trained: another rank or alpha, or matrices of other modules.
    """
    fetch = _fetch_export if "/external_weights/" in path else _fetch_archive
    if not _with_retries(path, lambda: fetch(service, path, folder)):
        return note_once("the server does not export adapters: checkpoints hold remote.json only")
    for name in FILES:
        if not (folder / name).exists():
            raise UserError(f"the server's adapter {path} has no {name}")
    _check_config(folder / ADAPTER_CONFIG, rank)
    modules = _clean_weights(folder / ADAPTER_WEIGHTS)
    settings = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": TINKER_ALPHA,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(modules),  # servers write `all-linear` or null, which PEFT reads as other modules
        "task_type": "CAUSAL_LM",
    }
    atomic.write_json(folder / ADAPTER_CONFIG, settings)


def _with_retries(path: str, fetch: Callable[[], bool]) -> bool:
    attempt = 1
    while True:
        try:
            return fetch()
        except (OSError, *ENDS_EARLY) as error:
            if attempt == TRIES:
                raise UserError(f"the adapter {path} could not be downloaded: {error}") from None
        time.sleep(2**attempt)
        attempt += 1


def _fetch_export(service: Service, path: str, folder: Path) -> bool:
    """Download an export by the URLs that the server gives for it. Always True."""
    urls = wait(service.rest.get_external_weights_urls(path), f"export of {path}").urls
    for name in FILES & urls.keys():
        with urllib.request.urlopen(urls[name], timeout=TIMEOUT) as source:
            _copy(source, folder / name)
            if source.length:
                raise OSError(f"{source.length} bytes are missing")
    return True


def _fetch_archive(service: Service, path: str, folder: Path) -> bool:
    """Take the adapter's files out of an archive of sampler weights. Returns False if the server has none."""
    parts = path.split("/")
    url = f"{service.base_url}/api/v1/training_runs/{parts[2]}/checkpoints/{parts[-1]}/archive"
    request = urllib.request.Request(url)
    request.add_unredirected_header("X-API-Key", api_key())  # for this server only: it may redirect to another one
    try:
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT) as source,
            tarfile.open(fileobj=source, mode="r|*") as archive,
        ):
            for member in archive:
                if (name := PurePosixPath(member.name).name) in FILES and member.isfile():
                    _copy(archive.extractfile(member), folder / name)
    except urllib.error.HTTPError as error:
        if error.code in (404, 405, 501):
            return False
        raise
    return True


def _copy(source, path: Path) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(source, file)


def _check_config(path: Path, rank: int) -> None:
    """Raise UserError if the scale of the server's adapter is not alpha / rank, as the run's settings say."""
    try:
        config = json.loads(path.read_text())
        found = config["r"], config["lora_alpha"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the server's {ADAPTER_CONFIG} cannot be read: {type(error).__name__} {error}") from None
    if found != (rank, TINKER_ALPHA):
        exported = f"the server exports adapters of rank {found[0]} and alpha {found[1]}"
        raise UserError(f"{exported}, not of rank {rank} and alpha {TINKER_ALPHA}: {REMEDY}")
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise UserError(f"the server exports adapters with {key}, whose update is not alpha / rank * B A: {REMEDY}")


def _clean_weights(path: Path) -> set[str]:
    """The projections that a file of weights has matrices for. Matrices of the output layer are dropped if they are 0.

    Raises UserError if they are not, or if there are others. The file is read as bytes: NumPy has no bfloat16.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:start])
    except ValueError:
        raise UserError(f"the server's {ADAPTER_WEIGHTS} is not a safetensors file") from None
    header.pop("__metadata__", None)
    parts = {name: content[slice(*(start + o for o in about["data_offsets"]))] for name, about in header.items()}
    extra = [name for name in header if UNEMBEDDING.search(name)]
    if changed := [name for name in extra if ".lora_A." not in name and any(parts[name])]:
        raise UserError(f"the server trained the output layer, although it was told not to ({changed[0]}): {REMEDY}")
    kept = [name for name in header if name not in extra]
    modules = {match[1] if (match := MATRIX.fullmatch(name)) else name for name in kept}
    if not modules or modules - set(PROJECTIONS):
        unknown = sorted(modules - set(PROJECTIONS)) or ["nothing"]
        raise UserError(f"the server's adapter changes {unknown[0]}, not the seven projections: {REMEDY}")
    if extra:
        note_once(f"the server's adapter has {len(extra)} matrices of the output layer, all 0: left out")
        _write_safetensors(path, {name: header[name] for name in kept}, parts)
    return modules


def _write_safetensors(path: Path, header: dict, parts: dict[str, bytes]) -> None:
    offset, entries = 0, {"__metadata__": {"format": "pt"}}
    for name, about in header.items():
        entries[name] = about | {"data_offsets": [offset, offset + len(parts[name])]}
        offset += len(parts[name])
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(parts[name] for name in header)
