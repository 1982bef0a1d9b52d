"""How a model computes while it is trained: in bfloat16 on a GPU, by kernels that have gradients, and with
activations recomputed instead of kept if memory is short.

N tokens, I inputs and O outputs of a linear layer, R rank of an adapter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from ..blocks.kernels import dispatch
from ..blocks.model.layers import FeedForward, Linear, RMSNorm


def training_dtype(model: Any) -> torch.dtype:
    """What a model's products are computed in: the dtype it was loaded in, but bfloat16 (or float32, where
    the device lacks it) in place of float16, whose gradients would underflow."""
    if model.decoder.dtype != torch.float16:
        return model.decoder.dtype
    has_bfloat16 = model.decoder.device.type == "cuda" and torch.cuda.is_bf16_supported(False)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def prepare_computation(model: Any, *, recompute: bool, float32: bool = True) -> None:
    """Make a model, whose trained parameters have `requires_grad`, compute as it is best trained.

    Trained parameters become float32 (unless told otherwise), the others `training_dtype`. With `recompute`,
    only the inputs of the decoder's layers are kept for the gradient, and the rest is computed again.
    """
    loaded, dtype = model.decoder.dtype, training_dtype(model)
    for parameter in model.parameters():
        if parameter.requires_grad and float32:
            parameter.data = parameter.data.float()
        elif parameter.dtype == loaded:  # what is kept in float32, such as routers, stays so
            parameter.data = parameter.data.to(dtype)
    if dtype != torch.float32:
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.forward = partial(_with_autocast, module.forward, dtype)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.forward = partial(_lora_linear, module)
    if dispatch.device_has_kernels(model.decoder.device):
        _use_kernels(model)
    if recompute:
        for block in model.decoder.layers:
            block.forward = partial(_recomputed, block.forward)


def _with_autocast(forward: Callable[..., Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype):
        return forward(x)


def _recomputed(forward: Callable[..., Tensor], *args: Any) -> Tensor:
    result: Any = checkpoint(forward, *args, use_reentrant=False)
    return result


def _use_kernels(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.forward = partial(_norm, module)
        elif isinstance(module, FeedForward):
            module.forward = partial(_feed_forward, module)


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    from ..blocks.kernels import training  # needs Triton

    return training.rms_norm(x, norm.weight, norm.eps)


def _feed_forward(mlp: FeedForward, x: Tensor) -> Tensor:
    from ..blocks.kernels import training  # needs Triton

    return mlp.down_proj(training.swiglu(mlp.gate_proj(x), mlp.up_proj(x)))


def _lora_linear(layer: LoraLinear, x: Tensor) -> Tensor:
    """PEFT's layer, with one adapter of the plain kind by `_LoraProduct`."""
    base, names = layer.base_layer, layer.active_adapters
    if type(base) is not Linear or layer.disable_adapters or layer.merged or len(names) != 1:
        return LoraLinear.forward(layer, x)
    name: str = names[0]
    if name not in layer.lora_A or name in layer.lora_variant:
        return LoraLinear.forward(layer, x)
    a, b = layer.lora_A[name], layer.lora_B[name]
    if not isinstance(layer.lora_dropout[name], nn.Identity) or a.bias is not None or b.bias is not None:
        return LoraLinear.forward(layer, x)
    arguments = (x, base.weight, base.bias, a.weight, b.weight, layer.scaling[name])
    return _LoraProduct.apply(*arguments)  # type: ignore[return-value]


class _LoraProduct(Function):
    """`x W + scale x A B` and its gradients to x, A and B: the small products are added in place, and nothing
    is cast but A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        x_NI, a_RI, b_OR = x.reshape(-1, x.shape[-1]), a.to(x.dtype), b.to(x.dtype)
        down_NR = x_NI @ a_RI.T
        out_NO = F.linear(x_NI, weight_OI, bias).addmm_(down_NR, b_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, a_RI, b_OR, down_NR)
        ctx.scale = scale
        return out_NO.view(*x.shape[:-1], len(weight_OI))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_NI, weight_OI, a_RI, b_OR, down_NR = ctx.saved_tensors
        grad_NO = grads[0].reshape(-1, len(weight_OI))
        grad_NR = (grad_NO @ b_OR) * ctx.scale
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad_NO @ weight_OI).addmm_(grad_NR, a_RI).view(*grads[0].shape[:-1], -1)
        a_grad, b_grad = (grad_NR.T @ x_NI).float(), (grad_NO.T @ down_NR).float() * ctx.scale
        return x_grad, None, None, a_grad, b_grad, None
