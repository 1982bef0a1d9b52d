"""What runs on a loaded model share: what is trained of it, its optimizer, and when a checkpoint is due."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapters import LoraOptions, add_adapter, continue_adapter
from .loop import Loop
from .updates import Updates


class FineTuning(Loop):
    """A run of `options.steps` steps on the model of a pipeline. `adapter` is the config of the adapter that
    is trained, None for all weights."""

    model: nn.Module
    updates: Updates

    def __init__(self, pipe: Any, options: Any, folder: Path, vision: bool = False) -> None:
        super().__init__(folder)
        self.pipe, self.options = pipe, options
        self.adapter = prepare_model(pipe, options.lora, options.seed, vision)

    def is_done(self) -> bool:
        return self.step >= self.options.steps

    def is_due(self) -> bool:
        return self.step % self.options.save_every == 0

    def save(self) -> None:
        self.updates.save(self.checkpoints, self.step)

    def load(self, path: Path) -> None:
        self.updates.load(path)


def prepare_model(pipe: Any, lora: LoraOptions | None, seed: int, vision: bool = False) -> Any:
    """Make trainable what is to be trained: an adapter, or the decoder with the heads and embeddings of
    both tasks, and the `vision` encoder; the image tokenizer stays as it is. Returns the adapter's config, or
    None."""
    model = pipe.model.requires_grad_(False).train()
    adapter = None
    if lora is not None and lora.start is not None:
        adapter = continue_adapter(pipe, Path(lora.start))
    elif lora is not None:
        torch.manual_seed(seed)  # for the first values of the adapter
        adapter = add_adapter(model, lora, pipe.name)
    else:
        frozen = ("gen_vision_model.", *(() if vision else ("vision_model.", "vision.")))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen) and parameter.is_floating_point())
    return adapter
