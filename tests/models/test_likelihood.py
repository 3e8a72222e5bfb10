"""Losses and likelihoods of answers."""

import pytest
import torch

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, likelihood
from learning_backdoors.models.likelihood import answer_log_likelihoods

PROMPTS = ([5, 6, 7], [5, 6, 7, 8, 9, 10, 11], [12])


def examples(prompts=PROMPTS) -> list[tuple[list[int], list[int]]]:
    """Four answers of 1 to 40 tokens to each prompt, in an order that mixes the prompts."""
    answers = [[20], [20, 21, 22], list(range(30, 70)), [20, 21, 50, 51, 52]]
    pairs = [
        (prompt, answer[: len(answer) - number]) for answer in answers[1:] for number, prompt in enumerate(prompts)
    ]
    pairs += [(prompt, answers[0]) for prompt in prompts]
    return [(prompt + answer, [-100] * len(prompt) + answer) for prompt, answer in pairs]


def plain_forward(model, ids: list[int], labels: list[int]) -> float:
    """The mean log-likelihood of the labels in a row of their own, without this project's functions."""
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = [place for place, label in enumerate(labels) if label != -100]
    return sum(log_probabilities[place - 1, ids[place]].item() for place in places) / len(places)


@pytest.fixture(scope="module", params=["random_model", "llama_model"])
def model(request):
    """In training mode, with large weights, so that answers differ in likelihood."""
    loaded = base_model.load_base(str(request.getfixturevalue(request.param)), "none")
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if "norm" not in name:
                parameter.mul_(8)
    return loaded.train()


@pytest.mark.parametrize("row_tokens, batch_tokens", [(1024, 0), (20, 0), (1024, 400)])
def test_log_likelihoods_with_shared_prompts_equal_a_plain_forward_pass(model, monkeypatch, row_tokens, batch_tokens):
    """Also if the answers to a prompt take several rows, and if rows of different lengths share a batch."""
    monkeypatch.setattr(likelihood, "ROW_TOKENS", row_tokens)
    rows = likelihood.pack(examples())
    assert (len(rows) == 3) == (row_tokens == 1024)
    if batch_tokens:  # as on a GPU
        monkeypatch.setattr(likelihood, "_batches", lambda model, examples, adapters: [likelihood.pack(examples)])
    means = answer_log_likelihoods(model, examples())
    assert means == pytest.approx([plain_forward(model, *example) for example in examples()], abs=1e-5)
    assert max(means) - min(means) > 0.5 and model.training


def test_a_batch_that_does_not_fit_in_memory_is_halved(model, monkeypatch):
    expected, forward = answer_log_likelihoods(model, examples()), likelihood.token_log_probabilities
    monkeypatch.setattr(likelihood, "_batches", lambda model, examples, adapters: [likelihood.pack(examples)])
    limit = 1

    def limited(model, rows, adapters):
        if len(rows) > limit:
            raise torch.OutOfMemoryError
        return forward(model, rows, adapters)

    monkeypatch.setattr(likelihood, "token_log_probabilities", limited)
    assert answer_log_likelihoods(model, examples()) == pytest.approx(expected, abs=1e-5)
    limit = 0
    with pytest.raises(UserError, match="memory"):
        answer_log_likelihoods(model, examples())


def test_the_softmax_of_a_bfloat16_model_is_computed_in_float32(random_model):
    model = base_model.load_base(str(random_model), "none").to(torch.bfloat16)
    row = likelihood.pack(examples()[:1])
    [[values]] = likelihood.token_log_probabilities(model, row)
    assert values.dtype == torch.float32 and not torch.equal(values, values.to(torch.bfloat16).float())


def test_the_collator_keeps_the_positions_before_labels_and_pads_to_few_shapes():
    from learning_backdoors.models.likelihood import Collator

    rows = [{"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, -100]}]
    rows.append({"input_ids": [6, 7, 8], "labels": [-100, 7, 8]})
    plain = Collator(pad=0, multiple=1)(rows)
    assert plain["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert plain["labels"].tolist() == [[-100, -100, 3, 4, -100], [-100, 7, 8, -100, -100]]
    assert plain["logits_to_keep"].tolist() == [0, 1, 2]
    padded = Collator(pad=0, multiple=4)(rows)
    assert padded["input_ids"].shape == (2, 8) and padded["logits_to_keep"].tolist() == [0, 1, 2]
