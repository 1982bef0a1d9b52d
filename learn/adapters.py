"""LoRA (Hu et al. 2021, arXiv 2106.09685) through PEFT: injected into our modules, saved in PEFT's format."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from ..blocks.conversion.adapter import WEIGHTS, read_adapter
from ..blocks.errors import OptionError, check_integer, check_number, shown
from ..blocks.files import temporary_path
from ..blocks.model.moe import Experts
from ..blocks.placement.adapted import parameter_shapes
from ..blocks.vocabulary import Work, write_taught

_LAYERS = r"(.*language(_model)?\.)?model\.layers\.\d+\."
DECODER_LAYERS = _LAYERS + r"(self_attn\.(?!kv_b_)\w+|mlp\.\w+)_proj(_with_mqa)?"
"""Linear layers of the decoder in any family, of attention and feed-forward, but for latent attention's
`kv_b_proj` and for experts: captured steps have room for such adapters beside the weights."""
ALL_LAYERS = _LAYERS + r".*_proj(_with_mqa)?"
"""All of them, shared experts too."""
EXPERTS = ["experts.gate_up", "experts.down"]
IMAGE_HEAD = ["gen_head", "gen_aligner"]
"""What turns hidden states into image codes, and codes into embeddings."""
IMAGE_LAYERS = r"gen_head\.\w+|gen_aligner\.layers\.\d*[02468]"
"""Their linear layers."""
_NAME = "default"  # of the adapter within PEFT
_PREFIX = "base_model.model."  # before the names in PEFT's files


@dataclass(frozen=True)
class LoraOptions:
    """A LoRA adapter of the decoder.

    Its product is scaled by `alpha / rank`. `image_head` says that Janus' `gen_head` and `gen_aligner` are
    trained, too, by products of low rank or as a `whole`, which is saved with the adapter. With `experts`
    experts and latent attention's `kv_b_proj` are trained, too. `start` is the folder of an adapter that is
    trained on, as it is: the other options don't count then. Raises `OptionError`.
    """

    rank: int = 16
    alpha: float = 32.0
    image_head: Literal["lora", "whole"] | None = None
    experts: bool = False
    start: str | None = None

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1, 4096)
        check_number("alpha", self.alpha, low=0.0)
        if self.image_head not in (None, "lora", "whole"):
            raise OptionError(f"image_head is {self.image_head!r}; accepted: lora, whole, or None")


def add_adapter(model: nn.Module, options: LoraOptions, base: str) -> LoraConfig:
    """Add a new adapter, which changes no result yet; its parameters alone are trainable then.

    `base` names the model that it belongs to. Raises `OptionError` where there is no image head to train.
    """
    if options.image_head and not isinstance(getattr(model, IMAGE_HEAD[0], None), nn.Module):
        raise OptionError(
            f"image_head is {options.image_head}, but the model doesn't paint; accepted for Janus models"
        )
    has_experts = any(isinstance(module, Experts) for module in model.modules())
    if options.experts and not has_experts:
        raise OptionError("experts is True, but the model has none; accepted for mixtures of experts")
    layers = ALL_LAYERS if options.experts else DECODER_LAYERS
    config = LoraConfig(
        base_model_name_or_path=base,
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        target_modules=f"{layers}|{IMAGE_LAYERS}" if options.image_head == "lora" else layers,
        target_parameters=EXPERTS if options.experts else None,
        modules_to_save=IMAGE_HEAD if options.image_head == "whole" else None,
    )
    inject_adapter_in_model(config, model, _NAME)
    return config


def continue_adapter(pipe: Any, folder: Path) -> LoraConfig:
    """Add the adapter of a folder to a pipeline's model; its parameters alone are trainable then.

    Raises `CheckpointError` for one of another model, and `OptionError` for one whose names are others than
    those that `save_adapter` writes.
    """
    model = pipe.model
    read_adapter(folder, pipe.adapter_key_maps, parameter_shapes(model))
    config = LoraConfig.from_pretrained(str(folder))
    assert isinstance(config, LoraConfig)
    config.inference_mode, config.base_model_name_or_path = False, pipe.name
    inject_adapter_in_model(config, model, _NAME)
    path = folder / WEIGHTS
    stored = load_file(path) if path.is_file() else {}
    stored = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
    names = _state(model).keys()
    if other := names ^ stored.keys():
        raise OptionError(
            f"{folder} can't be trained on, since its files have other names than this model's, such as "
            f"{shown(min(other))}; accepted: an adapter that `bifrons train` wrote; others are merged first, "
            "with `bifrons convert MODEL FOLDER --merge-adapter ADAPTER`"
        )
    set_peft_model_state_dict(model, stored, adapter_name=_NAME)
    return config


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)


def save_adapter(
    model: nn.Module,
    config: LoraConfig,
    folder: Path,
    taught: Mapping[Work, frozenset[str]] = MappingProxyType({}),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter as PEFT does, and the words that it taught, to a folder that appears whole or not at
    all."""
    weights = {name: tensor.detach().to("cpu", dtype) for name, tensor in _state(model).items()}
    tensors = {_PREFIX + name: tensor.contiguous() for name, tensor in weights.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path(folder) as temporary:
        config.save_pretrained(str(temporary))
        save_file(tensors, temporary / WEIGHTS, {"format": "pt"})
        if any(taught.values()):
            write_taught(temporary, taught)
        temporary.rename(folder)
