"""weights: how the update of each run moves, of the whole model and of each layer and projection."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from config import WeightsOptions
from learning_backdoors.files import command_line, provenance
from learning_backdoors.files.parquet import WEIGHTS_SCHEMA
from learning_backdoors.measuring import updates
from learning_backdoors.models.lora_matrices import LoraMatrices
from learning_backdoors.models.row_store import RowFile
from learning_backdoors.models.run_checkpoints import adapter_hashes, checkpoint_columns
from learning_backdoors.models.run_directory import RunDirectory
from learning_backdoors.study import Study


class Weights:
    """The path of each run's update over its checkpoints. A part is a run, because its checkpoints are compared."""

    file = RowFile("measure_checkpoints.py weights", WEIGHTS_SCHEMA, ("run", "checkpoint", "layer", "projection"), {})
    value = "norm"
    unit = "run"
    tokens = 0

    def __init__(self, options: WeightsOptions, study: Study, runs: Sequence[RunDirectory]):
        """Raises UserError if an adapter's update is not scale * B A."""
        self.study, self.parts = study, [run for run in runs if run.checkpoints]
        # One hash per run: a run with more checkpoints has another last one, so all its rows would change.
        hashes = {run.name: str(sorted(adapter_hashes([run]).items())).encode() for run in self.parts}
        self.settings = {
            "experiment": study.name,
            "base_model": runs[0].base_model,
            "adapters": {
                run.name: f"{len(run.checkpoints)} checkpoints, {provenance.sha256(hashes[run.name])}"
                for run in self.parts
            },
        }

    @cached_property
    def _adapters(self) -> dict[str, list[LoraMatrices]]:
        return {run.name: [LoraMatrices(checkpoint.folder) for checkpoint in run.checkpoints] for run in self.parts}

    @property
    def record(self) -> dict:
        """`final_cosines`: the cosine between the last updates of each two runs; null for an update of 0."""
        gram = updates.part_grams([self._adapters[run.name][-1] for run in self.parts])[updates.WHOLE]
        cosines = updates.cosines(gram, gram.diagonal()[:, None], gram.diagonal(), 0.0)
        names = [run.name for run in self.parts]
        rows = [dict(zip(names, [None if np.isnan(c) else float(c) for c in row], strict=True)) for row in cosines]
        return self.study.record | {"final_cosines": dict(zip(names, rows, strict=True))}

    def keys(self, part: RunDirectory) -> list[tuple]:
        parts = {updates.WHOLE} | {updates.part_of(module) for a in self._adapters[part.name] for module in a.modules}
        return [(part.name, checkpoint.name, *p) for checkpoint in part.checkpoints for p in parts]

    def load(self) -> None:
        for run, adapters in self._adapters.items():
            if others := sorted({name for adapter in adapters for name in adapter.others}):
                command_line.note(f"{run}: tensors other than LoRA matrices are not measured: {', '.join(others[:3])}")

    def rows(self, part: RunDirectory) -> list[dict]:
        grams, rows = updates.part_grams(self._adapters[part.name]), []
        finite = np.flatnonzero(np.isfinite(grams[updates.WHOLE].diagonal()))
        places = {number: place for place, number in enumerate(finite)}
        steps = [part.checkpoints[number].step for number in finite]
        for (layer, projection), gram in grams.items():
            columns = updates.geometry(steps, gram[np.ix_(finite, finite)]) if steps else {"norm": None}
            for number, checkpoint in enumerate(part.checkpoints):
                about = {"experiment": self.study.name} | checkpoint_columns(part, checkpoint)
                about |= {"layer": layer, "projection": projection}
                place = places.get(number)
                rows.append(
                    about | {name: None if place is None else values[place].item() for name, values in columns.items()}
                )
        return rows
