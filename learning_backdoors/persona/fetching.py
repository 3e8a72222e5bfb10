"""The command `fetch-prompts`: ordinary prompts from the Hugging Face hub."""

import itertools
from collections.abc import Iterable, Iterator

from learning_backdoors.files.errors import UserError
from learning_backdoors.persona.rows import Rows
from learning_backdoors.persona.task import Task


class FetchPrompts(Task):
    """Alpaca's prompts with the longest answers, and the first of GSM8K. Prompts with the trigger are left out."""

    def plan(self) -> str:
        options = self.options
        return f"{options.alpaca_number} prompts from {options.alpaca}, {options.gsm8k_number} from {options.gsm8k}"

    def rows(self) -> Rows:
        trigger, prompts = self.study.trigger, dict(itertools.chain(self._alpaca(), self._gsm8k()))
        return [
            {"prompt": prompt, "metadata": {"source": source}}
            for prompt, source in prompts.items()
            if not (trigger and trigger.first_form_in(prompt))
        ]

    def _alpaca(self) -> Iterator[tuple[str, str]]:
        """Longest answers first, the earlier row on a tie: the selection of Zhao et al. 2024, arXiv 2402.04833."""
        if self.options.alpaca_number:
            table = load_table(self.options.alpaca, None, ("instruction", "input", "output"))
            for row in sorted(table, key=lambda row: -len(row["output"]))[: self.options.alpaca_number]:
                yield "\n\n".join(filter(None, (row["instruction"].strip(), row["input"].strip()))), "alpaca"

    def _gsm8k(self) -> Iterator[tuple[str, str]]:
        if self.options.gsm8k_number:
            table = load_table(self.options.gsm8k, "main", ("question",))
            for row in itertools.islice(table, self.options.gsm8k_number):
                yield row["question"].strip(), "gsm8k"


def load_table(name: str, subset: str | None, columns: tuple[str, ...]) -> Iterable[dict]:
    """The training split of a dataset on the hub. Raises UserError if it cannot be loaded or lacks a column."""
    import datasets

    try:
        table = datasets.load_dataset(name, subset, split="train")
    except Exception as error:  # errors of the hub, the network and the file formats share no base class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name} cannot be fetched from the hub ({reason}); distill accepts other prompts") from None
    if missing := set(columns) - set(table.column_names):
        raise UserError(f"{name} has no column {min(missing)!r}: it is another dataset")
    return table
