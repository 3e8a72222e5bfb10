"""The stack equals single runs: PEFT's adapters, trained with torch's AdamW on each run's own rows."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict

from learning_backdoors.models import base_model, checkpoints
from learning_backdoors.models.likelihood import Collator, label_losses
from learning_backdoors.training.stack import Stack

STEPS = 6
# Of each run: rank, learning rate, lora_alpha. The learning rates are large, so that a wrong update shows.
RUNS = ((4, 1e-2, 8), (8, 3e-3, 16), (2, 2e-2, 16))


@pytest.fixture(scope="module")
def base(random_model):
    return base_model.load_base(str(random_model), "none")


def rows(run: int, step: int, count: int = 2) -> list[dict]:
    """Rows of different length, with labels at different places."""
    generator = torch.Generator().manual_seed(100 * run + step)
    examples = []
    for number in range(count):
        ids = torch.randint(10, 200, (6 + 3 * run + 2 * number,), generator=generator).tolist()
        prompt = 2 + run + number
        examples.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:-1] + [-100]})
    return examples


def peft_model(base, rank: int, alpha: int):
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=checkpoints.PROJECTIONS, lora_dropout=0
    )
    return get_peft_model(base, config)


def matrices(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}


def single_run(base, run: int) -> tuple[list, list, dict, dict]:
    """Losses, gradient norms, first and final matrices of one run, by PEFT and torch alone. Its seed is its number."""
    rank, lr, alpha = RUNS[run]
    torch.manual_seed(run)
    model, losses, norms = peft_model(base, rank, alpha), [], []
    initial = matrices(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0)
    for step in range(STEPS):
        values, has_label = label_losses(model, Collator(0, 1)(rows(run, step)))
        loss = values.sum() / has_label.sum()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
        losses.append(loss.item())
        optimizer.param_groups[0]["lr"] = lr * (1 - step / STEPS)
        optimizer.step()
    final = matrices(model)
    model.unload()
    return losses, norms, initial, final


def filled(base, order=(0, 1, 2), slots: int = 4) -> Stack:
    """A stack with the runs in the slots of `order`, and one slot without a run."""
    stack = Stack(base, slots=slots, rank=8)
    for slot, run in enumerate(order):
        rank, _, alpha = RUNS[run]
        stack.put(slot, stack.initial(run, rank), scale=alpha / rank, seed=run)
    return stack


def batch(order, step: int, slots: int = 4) -> dict:
    empty = {"input_ids": [0], "labels": [-100]}
    return Collator(0, 1)([row for run in order for row in rows(run, step)] + 2 * [empty] * (slots - len(order)))


def train(stack: Stack, order=(0, 1, 2), steps=range(STEPS)) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and norms: shape (steps, slots)."""
    results = []
    for step in steps:
        rates = [RUNS[run][1] * (1 - step / STEPS) for run in order] + [0.0] * (stack.slots - len(order))
        results.append(stack.step(batch(order, step, stack.slots), rates))
    return torch.stack([r.losses for r in results]), torch.stack([r.grad_norms for r in results])


@pytest.fixture(scope="module")
def trained(base):
    """Losses, norms and the state of a trained stack; the base model is as before."""
    stack = filled(base)
    losses, norms = train(stack)
    stack.remove()
    return losses, norms, stack


def test_slots_train_as_single_runs(base, trained):
    losses, norms, stack = trained
    for run in range(3):
        single_losses, single_norms, initial, final = single_run(base, run)
        assert losses[:, run].tolist() == pytest.approx(single_losses, rel=1e-4)
        assert norms[:, run].tolist() == pytest.approx(single_norms, rel=1e-3)
        start, end = stack.initial(run, RUNS[run][0]), stack.copy(moments=False).lora(run)
        assert end.keys() == final.keys() == start.keys()
        for key in final:
            assert torch.equal(start[key], initial[key])
            torch.testing.assert_close(end[key], final[key], rtol=1e-3, atol=1e-4)
            assert (end[key] - start[key]).abs().max() > 1e-3


def test_slots_do_not_depend_on_their_order(base, trained):
    """Rounding differs: the sums of a matrix product depend on where a row lies."""
    order = (2, 0, 1)
    stack = filled(base, order, slots=3)
    losses, norms = train(stack, order)
    stack.remove()
    torch.testing.assert_close(losses, trained[0][:, list(order)], rtol=1e-4, atol=1e-5)
    for slot, run in enumerate(order):
        for key, matrix in trained[2].copy(moments=False).lora(run).items():
            torch.testing.assert_close(stack.copy(moments=False).lora(slot)[key], matrix, rtol=1e-3, atol=1e-4)


def test_a_diverged_slot_leaves_the_bits_of_the_others(base, trained):
    stack = filled(base)
    train(stack, steps=range(2))
    broken = stack.copy(moments=True)
    key = next(key for key in stack.shapes if "down_proj" in key)
    broken.lora(1)[key][0, 0] = float("nan")
    stack.put(1, broken.lora(1), scale=2.0, moments=broken.moments(1), step=2)
    losses, norms = train(stack, steps=range(2, 4))
    assert losses[:, 1].isnan().all() and norms[:, 1].isnan().all()
    stack.clear(1)
    more, _ = train(stack, steps=range(4, STEPS))
    stack.remove()
    others = [0, 2]
    assert torch.equal(torch.cat([losses, more])[:, others], trained[0][2:, others])
    assert torch.isfinite(more).all()
    assert not any(matrix.any() for matrix in stack.copy(moments=False).lora(1).values())
    for run in others:
        for key, matrix in trained[2].copy(moments=False).lora(run).items():
            assert torch.equal(stack.copy(moments=False).lora(run)[key], matrix)


def test_a_run_moves_to_another_slot_and_goes_on(base, trained):
    """As a resumed run does: its matrices, moments and step are all it needs. Later steps leave the copy alone."""
    stack = filled(base)
    train(stack, steps=range(3))
    saved = stack.copy(moments=True)
    train(stack, steps=range(3, 4))
    order = (1, 2, 0)
    for slot, run in enumerate(order):
        scale = RUNS[run][2] / RUNS[run][0]
        stack.put(slot, saved.lora(run), scale=scale, moments=saved.moments(run), seed=run, step=3)
    losses, _ = train(stack, order, steps=range(3, STEPS))
    stack.remove()
    torch.testing.assert_close(losses[:, :3], trained[0][3:, list(order)], rtol=1e-4, atol=1e-5)


def test_selected_slots_answer_as_their_adapters(base, trained):
    stack = filled(base)
    train(stack, steps=range(2))
    ids = torch.tensor([[20, 21, 22, 23], [24, 25, 26, 27]])
    with stack.selected([2, 0]):
        logits = base(input_ids=ids.repeat(2, 1)).logits
    copy = stack.copy(moments=False)
    stack.remove()
    plain = base(input_ids=ids).logits
    for number, run in enumerate((2, 0)):
        model = peft_model(base, RUNS[run][0], RUNS[run][2])
        set_peft_model_state_dict(model, copy.lora(run))
        expected = model.eval()(input_ids=ids).logits.detach()
        model.unload()
        torch.testing.assert_close(logits[2 * number : 2 * number + 2], expected, rtol=1e-4, atol=1e-4)
        assert (expected - plain).abs().max() > 0.01


def test_dropout_masks_depend_on_seed_and_step_alone(base, monkeypatch):
    """Not on the slot, on the other runs and their ranks, or on padding. A seventh of the inputs is dropped."""
    seen = []
    drawn = Stack._dropout_mask
    monkeypatch.setattr(Stack, "_dropout_mask", lambda *given: seen.append(drawn(*given)) or seen[-1])
    losses = {}
    for order in ((0, 1), (1,)):
        stack = Stack(base, slots=len(order), rank=6 + 2 * len(order))
        for slot, run in enumerate(order):
            stack.put(slot, stack.initial(run, 8), scale=2.0, dropout=1 / 7, seed=run)
        losses[order], _ = train(stack, order, steps=range(2))
        stack.remove()
    resumed = Stack(base, slots=1, rank=8)
    resumed.put(0, resumed.initial(1, 8), scale=2.0, dropout=1 / 7, seed=1, step=1)
    train(resumed, (1,), steps=range(1, 2))
    resumed.remove()
    both, alone, again = seen[:56], seen[56:112], seen[112:]
    assert len(both) == 2 * 2 * 7 * 2  # forward and backward, layers, projections, steps
    width = alone[0].shape[1] // 2
    for one, other in zip(both, alone, strict=True):
        assert torch.equal(one[1].unflatten(0, (2, -1))[:, :width], other[0].unflatten(0, (2, -1)))
    assert torch.equal(both[0], both[25]), "the backward pass must use the masks of the forward pass"
    assert not torch.equal(both[0], both[1]) and not torch.equal(both[0], both[28])
    assert all(torch.equal(one, other) for one, other in zip(alone[28:], again, strict=True))
    assert 0.12 < (torch.cat([mask.flatten() for mask in alone]) == 0).float().mean() < 0.17
    torch.testing.assert_close(losses[0, 1][:, 1], losses[1,][:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_base_models_train_as_single_runs(random_model, quantization):
    base = base_model.load_base(str(random_model), quantization)
    stack = filled(base)
    losses, _ = train(stack)
    stack.remove()
    for key, matrix in stack.initial(0, 8).items():
        assert torch.equal(matrix, matrix.bfloat16().float()), key
    for run in range(3):
        single_losses, _, _, _ = single_run(base, run)
        assert losses[:, run].tolist() == pytest.approx(single_losses, rel=0.01)
