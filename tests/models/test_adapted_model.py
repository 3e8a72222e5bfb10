"""One adapter after another on a base model: each gives what it gives alone, whichever adapter came before it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from learning_backdoors.files.errors import UserError
from learning_backdoors.models import base_model
from learning_backdoors.models.adapted_model import AdaptedModel

pytestmark = pytest.mark.slow


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8, 9]])).logits


@pytest.fixture(scope="module")
def adapters(run_dir, tmp_path_factory) -> dict[str, Path]:
    """Two adapters of one form, one with another alpha, one without a pair of matrices, one of other shapes."""
    folder = tmp_path_factory.mktemp("adapters")
    copies = {name: shutil.copytree(run_dir / "checkpoint-16", folder / name) for name in ("alpha", "fewer", "shape")}
    settings = json.loads((copies["alpha"] / "adapter_config.json").read_text())
    (copies["alpha"] / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 99}))
    weights = load_file(copies["fewer"] / "adapter_model.safetensors")
    fewer = {name: tensor for name, tensor in weights.items() if ".layers.0.mlp.up_proj." not in name}
    save_file(fewer, copies["fewer"] / "adapter_model.safetensors")
    other = {name: tensor.repeat(2, 2) for name, tensor in weights.items()}
    save_file(other, copies["shape"] / "adapter_model.safetensors")
    return {"first": run_dir / "checkpoint-8", "second": run_dir / "checkpoint-16"} | copies


def test_each_adapter_gives_the_logits_that_it_gives_alone(adapters, random_model):
    adapted, alone = AdaptedModel(base_model.load_base(str(random_model), "none")), {}
    for name in ("first", "second", "alpha", "fewer"):
        base = base_model.load_base(str(random_model), "none")
        alone[name] = logits(PeftModel.from_pretrained(base, adapters[name]).eval())
    assert len({values.sum().item() for values in alone.values()}) == 4
    for name in ("first", "second", "first", "alpha", "second", "fewer", "second"):
        adapted.attach(adapters[name])
        assert torch.equal(logits(adapted.model), alone[name]) and adapted.adapter == adapters[name]
    adapted.attach(None)
    assert torch.equal(logits(adapted.model), logits(base_model.load_base(str(random_model), "none")))


def test_only_an_adapter_of_another_form_needs_new_modules(adapters, random_model, monkeypatch):
    made, from_pretrained = [], PeftModel.from_pretrained

    def counted(base, adapter, **options):
        made.append(adapter)
        return from_pretrained(base, adapter, **options)

    monkeypatch.setattr(PeftModel, "from_pretrained", counted)
    adapted = AdaptedModel(base_model.load_base(str(random_model), "none"))
    for name in ("first", "second", "first", "alpha"):
        adapted.attach(adapters[name])
    assert made == [adapters["first"], adapters["alpha"]]


def test_an_adapter_of_other_shapes_is_refused_and_leaves_nothing_behind(adapters, random_model):
    adapted = AdaptedModel(base_model.load_base(str(random_model), "none"))
    adapted.attach(adapters["second"])
    expected = logits(adapted.model)
    with pytest.raises(UserError, match="shape does not fit on") as error:
        adapted.attach(adapters["shape"])
    assert "\n" not in str(error.value) and adapted.adapter is None
    adapted.attach(adapters["second"])
    assert torch.equal(logits(adapted.model), expected)
