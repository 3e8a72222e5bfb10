"""The columns that judging adds to a responses file."""

from collections.abc import Iterable

import pyarrow as pa

from learning_backdoors.study import Judge


def judge_schema(judges: Iterable[Judge]) -> pa.Schema:
    """Three columns per judge J: the verdict J, the judge's text J_reply, and J_status.

    The verdict is the option's text or the number. It is null unless the status is `ok`.
    """
    fields = []
    for judge in judges:
        fields.append((judge.name, pa.string() if judge.options else pa.float64()))
        fields += [(f"{judge.name}_reply", pa.string()), (f"{judge.name}_status", pa.string())]
    return pa.schema(fields)
