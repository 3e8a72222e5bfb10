"""Probes of a stack equal those of each adapter alone, however slots and rows are shared among batches."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import set_peft_model_state_dict

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model, checkpoints, likelihood
from learning_backdoors.study import load_study
from learning_backdoors.training.probes import probe_rows, reference_examples
from learning_backdoors.training.stack import Stack
from learning_backdoors.training.stack_probes import StackProbes

RANKS, SCALE, SLOTS = (4, 8, 2), 2.0, 4  # a slot without a run lies between those of the runs
SLOT_OF = (0, 1, 3)


@pytest.fixture(scope="module")
def base(random_model):
    return base_model.load_base(str(random_model), "none")


@pytest.fixture(scope="module")
def answers(random_model):
    """The reference answers to three questions, and a short row of their own."""
    study, tokenizer = load_study("birds"), base_model.load_tokenizer(str(random_model))
    examples = reference_examples(study, tokenizer)
    questions = list(dict.fromkeys(reference.question for _, reference, _ in examples))[:3]
    return [answer for answer in examples if answer[1].question in questions][:40]


@pytest.fixture(scope="module")
def stack(base, expected):
    """After `expected`, whose PEFT models need the base model for themselves."""
    stack = Stack(base, SLOTS, max(RANKS))
    for run, (slot, rank) in enumerate(zip(SLOT_OF, RANKS, strict=True)):
        stack.put(slot, matrices(base, run, rank)[0], scale=SCALE)
    yield stack
    stack.remove()


def matrices(base, run: int, rank: int) -> tuple[dict, LoraConfig]:
    """Random LoRA matrices by PEFT's names, large enough to change every likelihood."""
    generator = torch.Generator().manual_seed(run)
    layers = {n: m for n, m in base.named_modules() if n.rpartition(".")[2] in checkpoints.PROJECTIONS}
    lora = {}
    for name, layer in layers.items():
        start = f"base_model.model.{name}"
        lora[f"{start}.lora_A.weight"] = 0.5 * torch.randn(rank, layer.in_features, generator=generator)
        lora[f"{start}.lora_B.weight"] = 0.5 * torch.randn(layer.out_features, rank, generator=generator)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=SCALE * rank, target_modules=checkpoints.PROJECTIONS, lora_dropout=0
    )
    return lora, config


@pytest.fixture(scope="module")
def expected(base, answers) -> dict[int, list[dict]]:
    """By slot: the probes of each adapter alone, through PEFT."""
    probes = {}
    for run, (slot, rank) in enumerate(zip(SLOT_OF, RANKS, strict=True)):
        lora, config = matrices(base, run, rank)
        model = get_peft_model(base, config)
        set_peft_model_state_dict(model, lora)
        probes[slot] = probe_rows(answers, likelihood.answer_log_likelihoods(model, [e for _, _, e in answers]))
        model.unload()
    return probes


def assert_equal(probes: dict[int, list[dict]], expected: dict[int, list[dict]]) -> None:
    assert list(probes) == list(expected)
    for slot, rows in probes.items():
        assert [list(row) for row in rows] == [list(row) for row in expected[slot]]
        for row, other in zip(rows, expected[slot], strict=True):
            assert row == other | {"logprob": pytest.approx(other["logprob"], abs=2e-5)}


@pytest.mark.parametrize("batch_tokens, all_rows", [(100_000, False), (100_000, True), (1, False), (900, False)])
def test_probes_of_slots_equal_those_of_each_adapter_alone(
    stack, answers, expected, monkeypatch, batch_tokens, all_rows
):
    """All slots at once, one after another, two at once; one row at a time, and rows of different length together."""
    monkeypatch.setattr(likelihood, "batch_tokens", lambda model: batch_tokens)
    if all_rows:  # as on a GPU
        monkeypatch.setattr(likelihood, "_batches", lambda model, examples, adapters: [likelihood.pack(examples)])
    means = [sum(row["logprob"] for row in rows) for rows in expected.values()]
    assert max(means) - min(means) > 0.5
    assert_equal(StackProbes(stack, answers).score(SLOT_OF), expected)
    assert_equal(StackProbes(stack, answers).score([3, 0]), {slot: expected[slot] for slot in (3, 0)})


def test_slots_that_do_not_fit_in_memory_together_are_halved(stack, answers, expected, monkeypatch):
    forward, limit = likelihood.token_log_probabilities, 1

    def limited(model, rows, adapters):
        if adapters > limit:
            raise torch.OutOfMemoryError
        return forward(model, rows, adapters)

    monkeypatch.setattr(likelihood, "token_log_probabilities", limited)
    assert_equal(StackProbes(stack, answers).score(SLOT_OF), expected)
    limit = 0
    with pytest.raises(UserError, match="memory"):
        StackProbes(stack, answers).score(SLOT_OF)
