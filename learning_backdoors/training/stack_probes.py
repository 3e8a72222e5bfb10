"""Probes of the runs in a stack: the reference answers of several slots are scored together."""

from collections.abc import Sequence

import torch

from learning_backdoors.models import likelihood
from learning_backdoors.training.probes import ReferenceExample, probe_rows
from learning_backdoors.training.stack import Stack


class StackProbes:
    """The likelihoods of the study's reference answers under the adapters in a stack's slots."""

    def __init__(self, stack: Stack, answers: Sequence[ReferenceExample]):
        """answers: as `reference_examples` gives them."""
        self.stack, self.answers = stack, answers
        self.examples = [example for _, _, example in answers]
        self.longest = max(len(row.tokens) for row in likelihood.pack(self.examples))

    def score(self, slots: Sequence[int]) -> dict[int, list[dict]]:
        """The probes of each slot, as `MetricsLog.write_probes` takes them.

        They equal those of the single runs, apart from rounding. Raises UserError if one row does not fit in memory.
        """
        slots, probes = list(slots), {}
        while remaining := slots[len(probes) :]:
            count = max(1, likelihood.batch_tokens(self.stack.base) // self.longest)
            for slot, means in self._log_likelihoods(remaining[:count]).items():
                probes[slot] = probe_rows(self.answers, means)
        return probes

    def _log_likelihoods(self, slots: list[int]) -> dict[int, list[float]]:
        """Those of each slot. Slots that do not fit in memory together are halved."""
        try:
            with self.stack.selected(slots):
                values = likelihood.adapters_log_likelihoods(self.stack.base, self.examples, len(slots))
            return dict(zip(slots, values, strict=True))
        except torch.OutOfMemoryError:
            if len(slots) == 1:
                raise likelihood.out_of_memory() from None
        torch.cuda.empty_cache()
        half = len(slots) // 2
        return self._log_likelihoods(slots[:half]) | self._log_likelihoods(slots[half:])
