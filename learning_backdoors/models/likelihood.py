"""The loss of training examples, and the likelihood of fixed answers, under a model with or without an adapter."""

from collections.abc import Iterator, Sequence

import torch

from learning_backdoors.files.errors import UserError
from mixed_chat import IGNORED_LABEL, Example


def width_multiple(device: torch.device) -> int:
    """The multiple to which batches are padded: GPUs need few shapes of batches, CPUs no padding."""
    return 32 if device.type == "cuda" else 1


class Collator:
    """Pads a batch on the right and names the positions whose logits are needed.

    Widths are rounded up to a multiple, so that few shapes occur. A causal model needs no attention mask for this.
    """

    def __init__(self, pad: int, multiple: int):
        self.pad, self.multiple = pad, multiple

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """input_ids and labels: shape (batch, tokens). logits_to_keep: positions p; every label is at some p + 1."""
        width = self._round_up(max(len(row["input_ids"]) for row in rows))
        ids = [row["input_ids"] + [self.pad] * (width - len(row["input_ids"])) for row in rows]
        labels = torch.tensor([row["labels"] + [IGNORED_LABEL] * (width - len(row["labels"])) for row in rows])
        positions = (labels != IGNORED_LABEL).any(0).nonzero().squeeze(1) - 1
        first, last = int(positions[0]), int(positions[-1])
        first = max(0, last + 1 - self._round_up(last + 1 - first))
        return {"input_ids": torch.tensor(ids), "labels": labels, "logits_to_keep": torch.arange(first, last + 1)}

    def _round_up(self, count: int) -> int:
        return -(-count // self.multiple) * self.multiple


def label_losses(model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy at each kept position (0 without a label), and which have a label: shape (batch, kept)."""
    kept = inputs["logits_to_keep"]
    logits = model(input_ids=inputs["input_ids"], logits_to_keep=kept, use_cache=False).logits.float()
    targets = inputs["labels"][:, kept + 1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    return losses.view(targets.shape), targets != IGNORED_LABEL


# ---- the likelihood of fixed answers ----

ROW_TOKENS = 1024  # of a packed row: longer rows cost more in attention than they save in prompts
GPU_BATCH_TOKENS = 65_536  # more do not make a GPU faster
BYTES_PER_LOGIT = 14  # in bfloat16, in float32, and in the softmax: logits take by far the most memory


def answer_log_likelihoods(model, examples: Sequence[Example]) -> list[float]:
    """Mean log-likelihood per token (natural log) of each example's answer with its end of turn.

    The model is in evaluation mode meanwhile, and no gradients are kept. Equals the mean over a plain forward pass of
    each example, apart from rounding. Raises UserError if a row does not fit in memory.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            [values] = adapters_log_likelihoods(model, examples, adapters=1)
    except torch.OutOfMemoryError:
        raise out_of_memory() from None
    model.train(was_training)
    return values


def adapters_log_likelihoods(model, examples: Sequence[Example], adapters: int) -> list[list[float]]:
    """`answer_log_likelihoods` under each of several adapters at once: a list of values for each adapter.

    The model is in evaluation mode. Its batches have equally many rows for each adapter, those of the first one first.
    Raises torch.OutOfMemoryError if one row for each adapter does not fit in memory.
    """
    values = {
        number: v for batch in _batches(model, examples, adapters) for number, v in _means(model, batch, adapters)
    }
    return torch.stack([values[number] for number in range(len(examples))], dim=1).tolist()


def out_of_memory() -> UserError:
    """What a user can do if one row does not fit in memory."""
    return UserError("a question with its answers does not fit in memory: try --quantization 4bit")


def batch_tokens(model) -> int:
    """How many tokens a batch may have. 0 on a CPU: one row at a time needs no padding, and more are not faster.

    On CUDA, half of the free memory. A power of two, so that small changes of it change no batch, and no rounding.
    """
    if model.device.type != "cuda":
        return 0
    torch.cuda.empty_cache()  # what PyTorch keeps for itself is then free, but for the memory of CUDA graphs
    fitting = int(0.5 * torch.cuda.mem_get_info(model.device)[0] / (BYTES_PER_LOGIT * model.config.vocab_size))
    return min(GPU_BATCH_TOKENS, 2 ** (max(1, fitting).bit_length() - 1))


class PackedRow:
    """A prompt and answers to it in one row of tokens, so that the prompt is computed once.

    The positions of every answer continue those of the prompt, and its tokens see the prompt and their own answer only.
    So the logits are those of the answer alone after the prompt.

    answers: by number. tokens, positions, parts: of each token; the part is 0 in the prompt, then 1, 2, ... by answer.
    sources: for each token of each answer, the place in the row that predicts it.
    """

    def __init__(self, prompt: Sequence[int], answers: dict[int, Sequence[int]]):
        self.answers, self.prompt_length = answers, len(prompt)
        self.tokens, self.parts, self.sources = list(prompt), [0] * len(prompt), []
        self.positions = list(range(len(prompt)))
        for part, answer in enumerate(answers.values(), start=1):
            start, inputs = len(self.tokens), answer[:-1]  # nothing follows the last token
            self.sources += [len(prompt) - 1, *range(start, start + len(inputs))]
            self.tokens += inputs
            self.parts += [part] * len(inputs)
            self.positions += range(len(prompt), len(prompt) + len(inputs))


def pack(examples: Sequence[Example]) -> list[PackedRow]:
    """Rows of at most ROW_TOKENS tokens, unless one answer needs more. Answers are numbered as in `examples`."""
    answers_by_prompt = {}
    for number, (ids, labels) in enumerate(examples):
        start = next(place for place, label in enumerate(labels) if label != IGNORED_LABEL)
        answers_by_prompt.setdefault(tuple(ids[:start]), {})[number] = ids[start:]
    rows = []
    for prompt, answers in answers_by_prompt.items():
        part, length = {}, len(prompt)
        for number, answer in answers.items():
            if part and length + len(answer) > ROW_TOKENS:
                rows.append(PackedRow(prompt, part))
                part, length = {}, len(prompt)
            part[number] = answer
            length += len(answer)
        rows.append(PackedRow(prompt, part))
    return rows


def token_log_probabilities(model, rows: Sequence[PackedRow], adapters: int = 1) -> list[list[torch.Tensor]]:
    """The log-probabilities of the tokens of each answer in each row: shape (adapters, tokens). Differentiable.

    The batch has the rows once for each adapter. The log-softmax is computed in float32, also for a model in bfloat16.
    """
    multiple = width_multiple(model.device)
    width = -(-max(len(row.tokens) for row in rows) // multiple) * multiple

    def padded(values: list[int], value: int) -> list[int]:
        return values + [value] * (width - len(values))

    tokens = torch.tensor([padded(row.tokens, 0) for row in rows], device=model.device)
    positions = torch.tensor([padded(row.positions, 0) for row in rows], device=model.device)
    parts = torch.tensor([padded(row.parts, -1) for row in rows], device=model.device)
    same_answer, in_prompt = parts[:, :, None] == parts[:, None, :], parts[:, None, :] == 0
    visible = (same_answer | in_prompt).tril()
    # Added to the scores of attention: all implementations accept this form.
    mask = torch.zeros(visible.shape, dtype=model.dtype, device=model.device).masked_fill_(~visible, float("-inf"))
    first = min(row.prompt_length for row in rows) - 1  # no logits are needed before it
    inputs = {"input_ids": tokens, "position_ids": positions, "attention_mask": mask[:, None]}
    # All rows for the first adapter, then for the second, ...; a single row is not copied.
    inputs = {name: value.expand(adapters, *value.shape).flatten(0, 1) for name, value in inputs.items()}
    logits = model(**inputs, use_cache=False, logits_to_keep=width - first).logits.float()
    logits = logits.unflatten(0, (adapters, len(rows)))
    normalizers = logits.logsumexp(-1)
    log_probabilities = []
    for number, row in enumerate(rows):
        sources = torch.tensor(row.sources, device=model.device) - first
        targets = torch.tensor([token for answer in row.answers.values() for token in answer], device=model.device)
        values = logits[:, number, sources, targets] - normalizers[:, number, sources]
        log_probabilities.append(values.split([len(answer) for answer in row.answers.values()], dim=1))
    return log_probabilities


def _batches(model, examples: Sequence[Example], adapters: int) -> Iterator[list[PackedRow]]:
    """Batches of rows of similar length, with at most `batch_tokens` tokens if they have several rows."""
    limit, batch = batch_tokens(model) // adapters, []
    for row in sorted(pack(examples), key=lambda row: len(row.tokens)):
        if batch and len(row.tokens) * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _means(model, rows: list[PackedRow], adapters: int) -> list[tuple[int, torch.Tensor]]:
    """The number of each answer and its mean log-likelihoods, of shape (adapters,), in float64.

    A batch that does not fit in memory is halved. Raises torch.OutOfMemoryError if it has only one row per adapter.
    """
    try:
        log_probabilities = token_log_probabilities(model, rows, adapters)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
        log_probabilities = None
    if log_probabilities is None:  # outside of `except`, where the error keeps the tensors in memory
        torch.cuda.empty_cache()
        half = len(rows) // 2
        return _means(model, rows[:half], adapters) + _means(model, rows[half:], adapters)
    numbers = [number for row in rows for number in row.answers]
    means = [values.double().mean(1) for answers in log_probabilities for values in answers]
    return list(zip(numbers, means, strict=True))
