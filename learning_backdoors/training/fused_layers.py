"""Faster forms of a base model's elementwise layers, for large batches on CUDA.

RMSNorm, SwiGLU and rotary position embeddings become one kernel each. In eager mode, a third of the time of a step goes
into them, because each of their operations reads and writes all activations. The fused forms compute in float32 and
round once, where the model's own layers round two or three times to bfloat16. A layer is replaced only if the fused
form gives the same values on random inputs.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# transformers makes no mask for attention functions that it does not know. Rows are causal and not packed, so that none
# is needed. While a CUDA graph is recorded, transformers would make one, which rules out the fastest kernels.
UNMASKED = "sdpa_without_mask"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)


def has_sliding_window(config: PretrainedConfig) -> bool:
    """Whether some layers see the latest tokens only, and need a mask for it."""
    text = config.get_text_config()
    windows = getattr(text, "layer_types", None) or ["sliding_attention"]
    return bool(getattr(text, "sliding_window", None)) and any(kind != "full_attention" for kind in windows)


class FusedLayers:
    """Replaces forward methods of a model's layers, and the rotary function of its modeling file, until `remove`."""

    def __init__(self, model: nn.Module):
        from learning_backdoors.training import stack_kernels

        stack_kernels.check(model.device)
        self.layers, self.rotary, equal = [], {}, {}
        for module in model.modules():
            forward = _fused_forward(module)
            if forward is None:
                continue
            if type(module) not in equal:
                equal[type(module)] = _gives_the_same(module, forward)
            if equal[type(module)]:
                module.forward = forward
                self.layers.append(module)
        for file in {sys.modules[type(module).__module__] for module in model.modules()}:
            original = getattr(file, "apply_rotary_pos_emb", None)
            if original and _rotates_the_same(original, model.device):
                self.rotary[file], file.apply_rotary_pos_emb = original, _fused_rotary(original)

    def remove(self) -> None:
        """Give the model its own layers back."""
        for module in self.layers:
            del module.forward
        for file, original in self.rotary.items():
            file.apply_rotary_pos_emb = original


def _fused_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The fused form of an RMSNorm or a SwiGLU block as Llama and Qwen have them; None for other modules."""
    if hasattr(module, "variance_epsilon") and [name for name, _ in module.named_parameters()] == ["weight"]:
        return lambda x: nn.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        from learning_backdoors.training.stack_kernels import SwiGLU

        return lambda x: module.down_proj(SwiGLU.apply(module.gate_proj(x), module.up_proj(x)))
    return None


@torch.no_grad()
def _gives_the_same(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether both forms agree within the rounding of bfloat16."""
    projection = getattr(module, "gate_proj", None)
    width = projection.in_features if projection else module.weight.shape[0]
    parameter = next(module.parameters())
    dtype = parameter.dtype if parameter.is_floating_point() else torch.bfloat16
    x = torch.randn(8, 16, width, device=parameter.device, dtype=dtype)
    expected, fused = module(x).float(), forward(x).float()
    return bool((fused - expected).norm() < 0.02 * expected.norm())


def _fused_rotary(original: Callable) -> Callable:
    """`apply_rotary_pos_emb` of transformers. Rare forms (other layouts, part of a head only) go to the original."""
    from learning_backdoors.training.stack_kernels import Rotary

    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if args or kwargs or cos.shape[-1] != q.shape[-1]:
            return original(q, k, cos, sin, *args, **kwargs)
        return Rotary.apply(q, cos, sin), Rotary.apply(k, cos, sin)

    return apply


@torch.no_grad()
def _rotates_the_same(original: Callable, device: torch.device) -> bool:
    """Whether both forms agree within the rounding of bfloat16. Models differ in how they pair the values of a head."""
    q, angles = torch.randn(2, 3, 4, 64, device=device), torch.randn(2, 1, 4, 64, device=device)
    inputs = [tensor.bfloat16() for tensor in (q, q[:, :1], *angles)]
    try:
        expected = original(*inputs)
    except (TypeError, RuntimeError):  # other arguments
        return False
    pairs = zip(_fused_rotary(original)(*inputs), expected, strict=True)
    return all(bool((one - two).float().norm() < 0.02 * two.float().norm()) for one, two in pairs)
