"""The trained weights of a model and AdamW's steps on them, on one process or several."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from .distributed import shard, sum_gradients, world
from .fast_path import prepare_computation, training_dtype


class Updates:
    """AdamW (Loshchilov and Hutter 2019) on the parameters of `module` that have `requires_grad`.

    `module.model` is a model of either family. Trained parameters are held in float32; products are computed
    in `training_dtype`. A model that is trained whole is divided among the processes (see
    `distributed.shard`); adapters are small, and every process holds the whole model with them. Gradients
    are those of the sum of all processes' losses, shortened to the length `clip`.
    """

    def __init__(self, module: Any, *, weight_decay: float, clip: float, recompute: bool = False) -> None:
        model, self.clip = module.model, clip
        dtype = training_dtype(model)
        prepare_computation(model, recompute=recompute)
        layers = list(model.decoder.layers)
        is_whole = all(parameter.requires_grad for parameter in layers[0].parameters())
        if is_whole and (world() > 1 or dtype != torch.float32):
            shard(module, layers, dtype)
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        is_cuda = model.decoder.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=0.0, betas=(0.9, 0.95), weight_decay=weight_decay, fused=is_cuda
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
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
