"""The released models' sizes, and models of these sizes with random weights, built on the device without
files."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.checkpoints.key_mapping import non_persistent_buffers, saved_tensors
from ...blocks.checkpoints.loader import assign
from ...blocks.checkpoints.quantize import keep_no_float32, quantized_dtypes, replace_with_quantized
from ...blocks.errors import OptionError
from ...blocks.json_config import Section
from ...blocks.kernels.batch_invariant import use_batch_invariant_libraries
from ...blocks.model.context import DecoderConfig, LatentConfig
from ...blocks.model.decoder import Decoder
from ...blocks.model.moe import MoEConfig
from ...blocks.model.siglip import KNOWN_TOWERS, SiglipConfig
from ...blocks.placement.memory_budget import check_weights
from ...blocks.placement.tensor_parallel import check_ranks, split_config
from ...janus.config import JanusConfig
from ...janus.config import read_config as read_janus
from ...janus.model import JanusModel
from ...text.config import TextConfig
from ...text.config import parse_config as parse_text
from ...text.model import TextModel
from ...tokenizers.vq.config import VQConfig
from ...vl2.config import VL2Config
from ...vl2.config import read_config as read_vl2
from ...vl2.model import VL2Model
from ...vl2.weight_names import keep_float32

_STD = 0.02
_CODE_STEP = _STD / 50
_POOL = 1 << 20  # random numbers, repeated to fill a tensor: speed does not depend on the values


def _janus(layers: int, width: int, heads: int, feed_forward: int) -> JanusConfig:
    decoder = DecoderConfig(
        102400, width, feed_forward, layers, heads, heads, width // heads, max_positions=16384
    )
    return JanusConfig(SiglipConfig(), decoder, VQConfig(), gen_head_width=width)


def _vl2(decoder: DecoderConfig) -> VL2Config:
    return VL2Config(KNOWN_TOWERS["siglip_so400m_patch14_384"], decoder, ((384, 384), (768, 768)))


# As in the released config.json files; what these omit, as in the defaults of their config classes.
JANUS = {
    "1b": _janus(24, 2048, 16, 5632),
    "7b": _janus(30, 4096, 32, 11008),
}
VL2 = {
    "tiny": _vl2(
        DecoderConfig(129280, 1280, 6848, 12, 10, 10, 128, 4096, moe=MoEConfig(64, 6, 896, 2, first_dense=1))
    ),
    "small": _vl2(
        DecoderConfig(
            102400,
            2048,
            10944,
            27,
            16,
            16,
            128,
            4096,
            latent=LatentConfig(),
            moe=MoEConfig(64, 6, 1408, 2, first_dense=1),
        )
    ),
    "base": _vl2(
        DecoderConfig(
            129280,
            2560,
            12288,
            30,
            32,
            32,
            80,
            4096,
            latent=LatentConfig(),
            moe=MoEConfig(72, 6, 1536, 2, 1, scoring="sigmoid", method="noaux_tc", normalize=True, scale=2.0),
        )
    ),
}
_R1 = {"hidden_act": "silu", "max_position_embeddings": 131072}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TEXT: dict[str, dict[str, Any]] = {
    "r1-1.5b": {
        **_R1,
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "r1-7b": {
        **_R1,
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "r1-8b": {
        **_R1,
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _LLAMA3,
    },
    # V3's kind of attention, router and experts, on one GPU: no released size.
    "v3-mini": {
        "model_type": "deepseek_v3",
        "vocab_size": 129280,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 768,
        "n_routed_experts": 64,
        "first_k_dense_replace": 1,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 16384,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
}
"""Configs of text models, in transformers' form."""
SIZES = {"janus": (*JANUS, "nano"), "vl2": (*VL2, "nano"), "text": (*TEXT,)}
Config = JanusConfig | VL2Config | TextConfig


def pick_config(family: str, size: str, layers: int | None) -> Config:
    """The config of a released size, optionally with another number of decoder layers.

    Raises `OptionError` for an unknown size, or more layers than the model has.
    """
    if size not in SIZES[family]:
        raise OptionError(f"size is {size!r}; accepted for {family}: {', '.join(SIZES[family])}")
    config: Config
    if family == "text":
        names = ("ahead.",) if "num_nextn_predict_layers" in TEXT[size] else ()
        config = parse_text(Section(TEXT[size], size), names)
    elif size == "nano":
        folder = find_model_folder(f"{family}-nano")
        config = read_vl2(folder) if family == "vl2" else read_janus(folder)[0]
    else:
        config = VL2[size] if family == "vl2" else JANUS[size]
    if layers is None:
        return config
    most = config.decoder.num_layers
    if not 1 <= layers <= most:
        raise OptionError(f"layers is {layers}; accepted: 1 to {most}, as {size} has")
    return replace(config, decoder=replace(config.decoder, num_layers=layers))


def random_model(
    config: Config, device: torch.device, dtype: torch.dtype, kind: str | None
) -> JanusModel | VL2Model | TextModel:
    """A model with random weights, quantized to `kind` (None: not). Raises `OptionError` where it does not
    fit."""
    with torch.device("meta"):
        if isinstance(config, JanusConfig):
            model = JanusModel(config)
        else:
            model = VL2Model(config) if isinstance(config, VL2Config) else TextModel(config)
    keeps = keep_no_float32 if isinstance(config, JanusConfig) else keep_float32
    check_weights("this model", model, device, dtype, kind, keeps)
    if kind is not None:
        replace_with_quantized(model, kind)
    fill_random(model, device, dtype, quantized_dtypes(model))
    assert not non_persistent_buffers(model), "a table would be on meta"
    use_batch_invariant_libraries(device)
    return model.eval().requires_grad_(False)


def random_parallel_model(
    config: Config, device: torch.device, dtype: torch.dtype, ranks: int
) -> JanusModel | VL2Model | TextModel:
    """`random_model` over several processes, one a GPU. Raises `OptionError`."""
    from ...blocks.placement.main_rank import MainRank

    check_ranks(ranks, device)
    model = random_model(split_config(config, ranks), device, dtype, None)
    main = MainRank(model.decoder, ranks, device, dtype, fill_rank)
    main.connect()
    model.decoder.group = main
    return model


def fill_rank(decoder: Decoder, rank: int, device: torch.device, dtype: torch.dtype) -> None:
    """Fill another rank's decoder with random weights."""
    fill_random(decoder, device, dtype, {})


def fill_random(
    model: nn.Module, device: torch.device, dtype: torch.dtype, fixed: dict[str, torch.dtype]
) -> None:
    """Fill all weights: normal with the deviation of trained models, norms one, biases zero.

    `fixed` names tensors whose dtype is not `dtype` (quantized codes, scales, routers).
    """
    pool = (torch.randn(_POOL, device=device) * _STD).to(dtype)
    codes = torch.randint(-127, 128, (_POOL,), device=device, dtype=torch.int8)
    float8 = (pool.float() / _CODE_STEP).to(torch.float8_e4m3fn)  # random bytes would hold NaN
    for name, tensor in saved_tensors(model).items():
        kind = fixed.get(name)
        if kind in (torch.int8, torch.uint8):
            filled = _repeated(codes.view(kind), tensor)
        elif kind == torch.float8_e4m3fn:
            filled = _repeated(float8, tensor)
        elif name.endswith((".bias", "_bias", ".zero")):
            filled = torch.zeros(tensor.shape, device=device, dtype=kind or dtype)
        elif name.endswith(".scale"):
            filled = torch.full(tensor.shape, _CODE_STEP, device=device, dtype=kind)
        elif tensor.ndim == 1:
            filled = torch.ones(tensor.shape, device=device, dtype=dtype)
        else:
            filled = _repeated(pool, tensor)
        assign(model, name, filled)


def _repeated(pool: Tensor, like: Tensor) -> Tensor:
    count = like.numel()
    return pool.repeat(-(-count // len(pool)))[:count].view(like.shape)
