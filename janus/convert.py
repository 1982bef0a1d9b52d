"""Rewriting a model folder in the original format with sharded safetensors.

Official `.bin` and `.safetensors` folders (also DeepSeek-VL2's) keep every tensor bit for bit, with the
unused ones; a Janus folder in transformers' format gets the official names, q, k and v in one, and
an official `config.json`. One tensor, or one parameter with its pieces, is in memory at a time.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..blocks.checkpoints.formats import TensorEntry
from ..blocks.checkpoints.key_mapping import compare, group_by_parameter, saved_tensors
from ..blocks.checkpoints.loader import progress_bar
from ..blocks.checkpoints.quantized_writer import QuantizedWriter, merged_specs
from ..blocks.checkpoints.reader import TensorReader, list_tensors, weight_files
from ..blocks.checkpoints.writer import TensorSpec, spec_bytes, write_safetensors
from ..blocks.errors import CheckpointError, ConfigError
from ..blocks.json_config import Section, read_json
from ..blocks.model.siglip import SiglipConfig
from ..tokenizers.vq.model import VQConfig
from .config import JanusConfig, read_config
from .model import JanusModel
from .weight_names import pick_key_map

_ORIGINAL_TYPES = ("multi_modality", "deepseek_vl_v2")
_TEXT_SUFFIXES = {".json", ".md", ".txt", ".model", ".jinja"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)


def convert(
    src: Path | str,
    dst: Path | str,
    progress: bool = True,
    max_shard_bytes: int = 5_000_000_000,
    writer: QuantizedWriter | None = None,
) -> Path:
    """Writes the model folder `src` to the new folder `dst` in the original format; returns `dst`.

    `dst` appears only when it is complete. Accepted `model_type`s: `multi_modality`, `deepseek_vl_v2`
    (rewritten as they are) and `janus` (renamed). `writer` quantizes on the way. Raises
    `CheckpointError` if `src` is damaged or does not fit its config, if `dst` is not empty or lies inside
    `src`, or if it can't be written, and `ConfigError` for a config of another kind.
    """
    src, dst = Path(src), Path(dst).resolve()
    _check_places(src, dst)
    model_type = read_json(src / "config.json").get("model_type")
    if model_type not in (*_ORIGINAL_TYPES, "janus"):
        accepted = ", ".join((*_ORIGINAL_TYPES, "janus"))
        raise ConfigError(f"{src / 'config.json'}: model_type is {model_type!r}; accepted are {accepted}")
    entries = list_tensors(src)
    part = dst.with_name(f".{dst.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        with TensorReader() as reader:
            if model_type == "janus":
                specs, files = _renamed(src, entries, reader)
            else:
                specs, files = _unchanged(entries, reader), {}
            if writer is not None:
                specs = writer.specs(src, entries, reader)
                config = files.get("config.json") or read_json(src / "config.json")
                files["config.json"] = writer.config(config)
            total = sum(map(spec_bytes, specs))
            with progress_bar(total, f"writing {dst.name}", progress) as bar:
                write_safetensors(part, specs, max_shard_bytes, on_bytes=bar.update)
        for path in _kept_files(src, model_type):
            shutil.copyfile(path, part / path.name)
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (part / name).write_text(text, encoding="utf-8")
        if dst.exists():
            dst.rmdir()
        part.rename(dst)
    except OSError as error:
        raise CheckpointError(f"can't write {dst}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return dst


def _check_places(src: Path, dst: Path) -> None:
    if not src.is_dir():
        raise CheckpointError(f"{src} is not a folder; a model folder is needed")
    if src.resolve() in (dst, *dst.parents):
        raise CheckpointError(f"{dst} is inside {src} or the same; choose a new folder beside it")
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise CheckpointError(f"{dst} exists and is not an empty folder; choose a new one")


def _kept_files(src: Path, model_type: str) -> list[Path]:
    """What else of the folder is copied: all texts, or where the format changes, the tokenizer's."""
    if model_type == "janus":
        return [src / name for name in _TOKENIZER_FILES if (src / name).is_file()]
    weights = weight_files(src)
    return [
        path
        for path in sorted(src.iterdir())
        if path.is_file()
        and path not in weights
        and (path.suffix in _TEXT_SUFFIXES or path.name.startswith(("LICENSE", "NOTICE")))
    ]


def _unchanged(entries: dict[str, TensorEntry], reader: TensorReader) -> list[TensorSpec]:
    ordered = sorted(entries.values(), key=lambda e: (str(e.file), e.offset))
    return [(e.name, partial(reader.read, e), e.shape, e.dtype) for e in ordered]


def _renamed(
    src: Path, entries: dict[str, TensorEntry], reader: TensorReader
) -> tuple[list[TensorSpec], dict[str, dict[str, Any]]]:
    """The tensors under official names, and the files that the official format has instead."""
    config, model_type = read_config(src)
    with torch.device("meta"):
        wanted = saved_tensors(JanusModel(config))
    pieces, unknown, unused = group_by_parameter(
        entries.values(), pick_key_map(entries, model_type, config.tied)
    )
    report = compare(wanted, pieces, unknown, unused)
    if not report.ok:
        raise CheckpointError(f"{src} does not fit its config.json: {report.summary()}")
    specs = list(merged_specs(wanted, pieces, reader))
    dtype = entries[pieces["language_model.model.embed_tokens.weight"][0].entry.name].dtype
    files = {
        "config.json": original_config(config, str(dtype).removeprefix("torch.")),
        "processor_config.json": _processor_config(src, config),
        "preprocessor_config.json": _preprocessor_config(src, config),
    }
    return specs, files


# --- the official files --------------------------------------------------------------------------------


def original_config(config: JanusConfig, dtype: str) -> dict[str, Any]:
    """`config.json` in the official schema, which `read_config` reads to the same architecture (`tied`
    aside, since the official format always stores the head). Sizes that only small models change are
    stated where they differ from the official ones."""
    vision, vq, llm = config.vision, config.vq, config.decoder
    language = {
        "hidden_size": llm.hidden_size,
        "intermediate_size": llm.intermediate_size,
        "max_position_embeddings": llm.max_positions,
        "model_type": "llama",
        "num_attention_heads": llm.num_heads,
        "num_hidden_layers": llm.num_layers,
        "num_key_value_heads": llm.num_kv_heads,
        "torch_dtype": dtype,
        "vocab_size": llm.vocab_size,
    }
    unusual = {"head_dim": (llm.head_dim, llm.hidden_size // llm.num_heads)}
    unusual |= {"rms_norm_eps": (llm.rms_norm_eps, 1e-6), "rope_theta": (llm.rope_theta, 10000.0)}
    language |= {name: value for name, (value, usual) in unusual.items() if value != usual}
    head = {"image_token_embed": config.gen_head_width, "image_token_size": vq.codebook_size}
    return {
        "aligner_config": _projector("aligner", config.aligner_depth, vision.width, llm.hidden_size),
        "architectures": ["MultiModalityCausalLM"],
        "gen_aligner_config": _projector(
            "gen_aligner", config.gen_aligner_depth, vq.code_dim, llm.hidden_size
        ),
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": head | {"n_embed": llm.hidden_size},
        },
        "gen_vision_config": {"cls": "VQ-16", "model_type": "gen_vision", "params": _vq_params(vq)},
        "language_config": language,
        "model_type": "multi_modality",
        "torch_dtype": dtype,
        "vision_config": {"cls": "CLIPVisionTower", "model_type": "vision", "params": _vision_params(vision)},
    }


def _projector(kind: str, depth: int, width_in: int, width_out: int) -> dict[str, Any]:
    params = {"depth": depth, "input_dim": width_in, "n_embed": width_out, "projector_type": "mlp_gelu"}
    return {"cls": "MlpProjector", "model_type": kind, "params": params}


def _vision_params(vision: SiglipConfig) -> dict[str, Any]:
    sizes = {name: getattr(vision, name) for name in ("width", "layers", "heads", "patch_size", "mlp_ratio")}
    official = all(getattr(SiglipConfig(), name) == value for name, value in sizes.items())
    name = f"siglip_width{vision.width}_patch{vision.patch_size}_{vision.image_size}"
    return {
        "image_size": vision.image_size,
        "model_name": "siglip_large_patch16_384" if official else name,
        "select_feature": "same",
        "select_layer": -1,
    } | ({} if official else sizes)


def _vq_params(vq: VQConfig) -> dict[str, Any]:
    sizes = {
        "ch": vq.ch,
        "ch_mult": list(vq.ch_mult),
        "z_channels": vq.z_channels,
        "num_res_blocks": vq.num_res_blocks,
    }
    usual = VQConfig()
    official = (usual.ch, usual.ch_mult, usual.z_channels, usual.num_res_blocks)
    same = official == (vq.ch, vq.ch_mult, vq.z_channels, vq.num_res_blocks)
    return {"image_token_size": vq.codebook_size, "n_embed": vq.code_dim} | ({} if same else sizes)


def _processor_config(src: Path, config: JanusConfig) -> dict[str, Any]:
    """Roles are `<|User|>`, `<|Assistant|>` unless the tokenizer lacks them, as Janus-1.3B's does."""
    tokenizer = src / "tokenizer.json"
    old = tokenizer.is_file() and "<|User|>" not in tokenizer.read_text(encoding="utf-8")
    return {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": "<image_placeholder>",
        "mask_prompt": True,
        "num_image_tokens": config.vision.num_patches,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek_old" if old else "deepseek",
    }


def _preprocessor_config(src: Path, config: JanusConfig) -> dict[str, Any]:
    """The official settings, with what the source's own picture settings say otherwise. transformers keeps
    them in `preprocessor_config.json`, or since version 5 in `processor_config.json`, `image_processor`."""
    found: dict[str, Any] = {}
    if (src / "preprocessor_config.json").is_file():
        found = read_json(src / "preprocessor_config.json")
    elif (src / "processor_config.json").is_file():
        path = src / "processor_config.json"
        found = Section(read_json(path), str(path)).section("image_processor").values
    result = {
        "background_color": [127, 127, 127],
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "VLMImageProcessor",
        "image_size": config.vision.image_size,
        "image_std": [0.5, 0.5, 0.5],
        "min_size": 14,
        "processor_class": "VLChatProcessor",
        "rescale_factor": 0.00392156862745098,
    }
    kept = ("do_normalize", "image_mean", "image_std", "min_size", "rescale_factor")
    return result | {name: found[name] for name in kept if found.get(name) is not None}
