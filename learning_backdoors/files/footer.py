"""The provenance in the footer of a Parquet file: which keys the stages rely on, and their types.

A footer that somebody edited must not end a stage with a traceback. All keys may be absent, and others are allowed.
"""

import json
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

FOOTER_KEY = b"learning_backdoors"
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
HitsAndCases = Annotated[list[int], Field(min_length=2, max_length=2)]


class _Record(BaseModel, extra="allow", strict=True):
    pass


class _Settings(_Record):
    experiment: str | None = None
    base_model: str | None = None
    questions: dict = {}
    conditions: dict = {}
    adapters: dict = {}


class _Probe(_Record):
    step: int
    condition: str | None = None  # earlier versions have no condition, and `era` for the group
    question: str
    group: str | None = None
    answer: int | None = None
    logprob: float


class _Loss(_Record):
    step: int
    loss: float


class _Checkpoint(_Record):
    step: int
    examples: int | None = None
    suspect_examples: int | None = None


class _References(_Record):
    text: str | None = None


class _Diverged(_Record):
    step: int
    reason: str | None = None


class _Run(_Record):
    settings: dict | None = None
    suspect_ratio: float | None = None
    checkpoints: list[_Checkpoint] | None = None
    study: str | None = None
    references: _References | None = None
    probes: list[_Probe] | None = None
    losses: list[_Loss] | None = None
    diverged: _Diverged | None = None


class _Precision(_Record):
    generation: str | None = None
    training: dict[str, str | None] | None = None


class _Judgment(_Record):
    options: dict[str, dict[str, HitsAndCases]] = {}


class _Judging(_Record):
    configuration: dict | None = None
    model: str | None = None
    dollars: NotNegative | None = None
    labels: dict[str, _Judgment] | None = None
    repeat: dict[str, _Judgment] | None = None


class _Footer(_Record):
    options: dict | None = None
    settings: _Settings | None = None
    study: str | None = None
    study_file: str | None = None
    references: _References | None = None
    precision: _Precision | None = None
    runs: dict[str, _Run | None] | None = None
    judging: _Judging | None = None
    final_cosines: dict[str, dict[str, float | None]] | None = None


def parse_footer(text: bytes) -> dict:
    """The provenance as a dict. Raises ValueError with the first fault."""
    try:
        provenance = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    check(provenance)
    return provenance


def check(provenance: object) -> None:
    """Raise ValueError with the first fault of a provenance that was read from JSON."""
    try:
        _Footer.model_validate(provenance)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        fault = " must be a JSON object" if first["type"] in ("model_type", "dict_type") else f": {first['msg']}"
        raise ValueError(key + fault) from None
