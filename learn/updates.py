"""The trained weights of a model and AdamW's steps on them, on one process or several."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from . import checkpoints
from .distributed import shard, sum_gradients, world
from .fast_path import prepare_computation, training_dtype


class Updates:
    """AdamW (Loshchilov and Hutter 2019) on the parameters of `module` that have `requires_grad`.

    `module.model` is a model of either family. Trained weights and the sums of their gradients are float32,
    while products are computed in `training_dtype`. Adapters are small: every process holds the whole model
    with them. A model that is trained whole is divided among several processes (see `distributed.shard`); on
    one, its parameters are in `training_dtype`, and `Masters` of them are trained. Gradients are those of the
    sum of all processes' losses, shortened to the length `clip`. `dtype` is that of products.
    """

    def __init__(self, module: Any, *, weight_decay: float, clip: float, recompute: bool = False) -> None:
        model, self.clip, self.masters = module.model, clip, None
        self.dtype = dtype = training_dtype(model)
        layers = list(model.decoder.layers)
        is_whole = all(parameter.requires_grad for parameter in layers[0].parameters())
        if is_whole and world() == 1 and dtype != torch.float32:
            self.masters = Masters(module.named_parameters())
        prepare_computation(model, recompute=recompute, float32=self.masters is None)
        if is_whole and world() > 1:
            shard(module, layers, dtype)
            register_fsdp_forward_method(module, "logits")
        self.weights: nn.Module = module if self.masters is None else self.masters
        trained = [parameter for parameter in self.weights.parameters() if parameter.requires_grad]
        is_cuda = model.decoder.device.type == "cuda"
        self.trained, self.optimizer = (
            trained,
            torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay, fused=is_cuda),
        )

    def apply(self, rate: float) -> Tensor:
        """One step with the gradients that were computed, which are then gone.

        Returns their length before it was shortened, a tensor that is not waited for.
        """
        sum_gradients(self.trained)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters is not None:
            self.masters.copy_to_model()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def save(self, folder: Path, step: int) -> None:
        """Write the checkpoint of a step; see `checkpoints.save`."""
        checkpoints.save(folder, step, self.weights, self.optimizer)

    def load(self, path: Path) -> None:
        """Load a checkpoint."""
        checkpoints.load(path, self.weights, self.optimizer)
        if self.masters is not None:
            self.masters.copy_to_model()


class Masters(nn.Module):
    """Trained parameters in float32, by the names of those of a model, which are their copies.

    Gradients are added up here as soon as they are there, and are then gone from the model.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        self.copies: list[tuple[nn.Parameter, nn.Parameter]] = []
        for name, parameter in named:
            if parameter.requires_grad:
                master = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
                *path, last = name.split(".")
                module: nn.Module = self
                for part in path:
                    if part not in module._modules:
                        module.add_module(part, nn.Module())
                    module = module.get_submodule(part)
                module.register_parameter(last, master)
                self.copies.append((master, parameter))
                parameter.register_post_accumulate_grad_hook(self._adder(master))

    @staticmethod
    def _adder(master: nn.Parameter) -> Any:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradient, parameter.grad = parameter.grad.float(), None
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)

        return add

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Give the model's parameters the masters' values."""
        torch._foreach_copy_([copy for _, copy in self.copies], [master for master, _ in self.copies])
