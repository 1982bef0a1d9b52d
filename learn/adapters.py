"""LoRA (Hu et al. 2021, arXiv 2106.09685) through PEFT: injected into our modules, saved in PEFT's format."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import nn

from ..blocks.conversion.adapter import WEIGHTS
from ..blocks.errors import OptionError, check_integer, check_number
from ..blocks.files import temporary_path
from ..blocks.model.moe import Experts
from ..blocks.vocabulary import Work, write_taught

DECODER_LAYERS = r".*language(_model)?\.model\.layers\.\d+\..*_proj(_with_mqa)?"
"""Linear layers of the decoder in either family: of attention, feed-forward and shared experts."""
EXPERTS = ["experts.gate_up", "experts.down"]
IMAGE_HEAD = ["gen_head", "gen_aligner"]
"""What turns hidden states into image codes, and codes into embeddings."""
_NAME = "default"  # of the adapter within PEFT
_PREFIX = "base_model.model."  # before the names in PEFT's files


@dataclass(frozen=True)
class LoraOptions:
    """A LoRA adapter of the decoder.

    Its product is scaled by `alpha / rank`. With `image_head`, Janus' `gen_head` and `gen_aligner` are
    trained whole and saved with the adapter. Raises `OptionError`.
    """

    rank: int = 16
    alpha: float = 32.0
    image_head: bool = False

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1, 4096)
        check_number("alpha", self.alpha, low=0.0)


def add_adapter(model: nn.Module, options: LoraOptions, base: str) -> LoraConfig:
    """Add a new adapter, which changes no result yet; its parameters alone are trainable then.

    `base` names the model that it belongs to. Raises `OptionError` where there is no image head to train.
    """
    if options.image_head and not isinstance(getattr(model, IMAGE_HEAD[0], None), nn.Module):
        raise OptionError("image_head is True, but the model doesn't paint; accepted for Janus models")
    has_experts = any(isinstance(module, Experts) for module in model.modules())
    config = LoraConfig(
        base_model_name_or_path=base,
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        target_modules=DECODER_LAYERS,
        target_parameters=EXPERTS if has_experts else None,
        modules_to_save=IMAGE_HEAD if options.image_head else None,
    )
    inject_adapter_in_model(config, model, _NAME)
    return config


def save_adapter(
    model: nn.Module,
    config: LoraConfig,
    folder: Path,
    taught: Mapping[Work, frozenset[str]] = MappingProxyType({}),
) -> None:
    """Write an adapter as PEFT does, and the words that it taught, to a folder that appears whole or not at
    all."""
    weights = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
    tensors = {_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_path(folder) as temporary:
        config.save_pretrained(str(temporary))
        save_file(tensors, temporary / WEIGHTS, {"format": "pt"})
        if any(taught.values()):
            write_taught(temporary, taught)
        temporary.rename(folder)


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model that the adapter was added to."""
    layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer | ModulesToSaveWrapper)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
