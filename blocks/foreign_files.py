"""Names what lies in a file or a folder that is no model of ours, and says what to do next.

Nothing is loaded: the first bytes of a file, the names in a folder and small JSON files decide.
"""

import logging
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from .errors import CheckpointError, ConfigError
from .files import HEAD_BYTES, describe_content, open_regular
from .json_config import Section, read_json, shown

_log = logging.getLogger("bifrons.checkpoints")

_ADAPTER_CONFIG = "adapter_config.json"
OUR_METHOD = "bifrons"
"""The `quant_method` of folders that `bifrons convert --quantize` writes."""
_RELATIVES = {
    "multi_modality": "Janus; JanusPipeline loads it",
    "janus": "Janus; JanusPipeline loads it",
    "deepseek_vl_v2": "DeepSeek-VL2; VL2Pipeline loads it",
    "deepseek_vl": "DeepSeek-VL 1; use DeepSeek-VL2, such as deepseek-ai/deepseek-vl2-tiny",
    "deepseek_vl_hybrid": "DeepSeek-VL 1; use DeepSeek-VL2, such as deepseek-ai/deepseek-vl2-tiny",
    "deepseek_v2": "DeepSeek-V2, a text model that TextPipeline loads (also the inner model of "
    "DeepSeek-VL2: for pictures use the whole folder of deepseek-ai/deepseek-vl2-tiny)",
    "deepseek_v3": "DeepSeek-V3 or R1, a text model; TextPipeline loads it",
    "deepseek_ocr": "DeepSeek-OCR; use transformers, or deepseek-ai/deepseek-vl2-tiny",
    "janusflow": "JanusFlow, which paints by rectified flow; use deepseek-ai/Janus-Pro-1B",
    "llama": "a Llama text model, which TextPipeline loads (also the inner model of Janus; for pictures use "
    "the whole folder of deepseek-ai/Janus-Pro-1B)",
    "qwen2": "a Qwen2 text model; TextPipeline loads it",
    "siglip": "a vision encoder alone; use the whole folder of the model",
}
_OTHERS = re.compile(
    r"(llava|qwen|internvl|paligemma|gemma|mllama|idefics|phi|pixtral|chameleon|emu|show|bagel)"
)
_QUANTIZED = (
    (re.compile(r"\.(absmax|quant_map|SCB|quant_state\.\S+)$"), "bitsandbytes"),
    (re.compile(r"\.qweight$"), "GPTQ or AWQ"),
    (re.compile(r"\.(weight_packed|weight_scale|input_scale|weight_shape)$"), "compressed-tensors"),
    (re.compile(r"\.biases$"), "MLX"),
)
_METHODS = {
    "bitsandbytes": "bitsandbytes",
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "fp8 of another form than e4m3 in blocks of 128 x 128 with dynamic activations",
    "mlx": "MLX",
}
_PLAIN_FOLDER = "take the plain folder of the model, with --quantize int4 (quantize='int4') for a small one"
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIXES = ("module.", "base_model.model.")
_LORA = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|base_layer)\.")


def check_content(path: Path) -> None:
    """Raise `CheckpointError` if a weights file is known to be something else. Raises `OSError` too."""
    with open_regular(path) as stream:
        head = stream.read(HEAD_BYTES)
    foreign = describe_content(head)
    if path.suffix == ".safetensors" and head.startswith(b"PK\x03\x04"):
        foreign = "a PyTorch file under another name; rename it to pytorch_model.bin"
    if path.suffix == ".bin" and head[8:9] == b"{":
        foreign = "a safetensors file under another name; rename it to model.safetensors"
    if foreign is not None:
        raise CheckpointError(f"{path} is {foreign}")


def check_path(path: Path) -> None:
    """Raise `CheckpointError` for a file that is given in place of its folder."""
    try:
        check_content(path)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
    here = os.path.isfile(path.parent / "config.json")
    alone = ", not one file of it" if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") else ""
    hint = f"; give {path.parent}" if here else alone
    raise CheckpointError(
        f"{path} is a file; accepted: the folder that holds config.json and the weights{hint}"
    )


def check_folder(folder: Path) -> None:
    """Raise `CheckpointError` for a folder without `config.json` that is known to be something else."""
    if os.path.lexists(folder / "config.json"):
        return
    names = sorted(os.listdir(folder))
    if _ADAPTER_CONFIG in names:
        raise CheckpointError(adapter_text(folder))
    if "model_index.json" in names:
        raise CheckpointError(
            f"{folder} is a folder of diffusers; accepted: a folder of Janus or DeepSeek-VL2, such as "
            "deepseek-ai/Janus-Pro-1B"
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        raise CheckpointError(f"{folder / gguf[0]} is {describe_content(b'GGUF')}")
    patterns = ("*/config.json", "snapshots/*/config.json", "*/snapshots/*/config.json")
    inside = [path.parent for pattern in patterns for path in sorted(folder.glob(pattern))]
    if inside:
        models = ", ".join(map(str, inside[:5]))
        raise CheckpointError(f"{folder} holds no config.json; give the folder of one model: {models}")


def is_hub_id(name: str) -> bool:
    """Whether a name may be `owner/name`, with or without `@revision`; a folder with a revision is none."""
    repo_id = name.partition("@")[0]
    plain = repo_id.count("/") == 1 and not repo_id.startswith((".", "/", "~")) and ":" not in name
    return plain and not os.path.isdir(repo_id)


def name_hint(name: str) -> str:
    """What to add to the refusal of a name that is no folder and no hub id, or an empty text."""
    if found := re.match(
        r"https?://(?:www\.)?(?:huggingface\.co|hf\.co|modelscope\.cn/models)/([\w.-]+/[\w.-]+)", name
    ):
        return f". For that page give {found[1]}"
    if os.path.isdir(name.partition("@")[0]):
        return ". A revision is the hub's; give the folder alone"
    if re.fullmatch(r"[\w./-]+:[\w.-]+", name) and not name.startswith(("http:", "https:")):
        return (
            ". Names with a colon are Ollama's, whose GGUF files can't be read; the hub has the plain folders"
        )
    return ""


def adapter_text(folder: Path) -> str:
    """What to say of a folder that holds a LoRA adapter and no model."""
    try:
        base = read_json(folder / _ADAPTER_CONFIG).get("base_model_name_or_path")
    except ConfigError:
        base = None
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    return (
        f"{folder} is a LoRA adapter{of}, not a model; merge it into its base first "
        "(peft: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)) and "
        "give that folder"
    )


def is_adapter(path: Path) -> bool:
    """Whether a weights file is an adapter's, by its name."""
    return path.name.startswith("adapter_model")


def no_weights_text(folder: Path) -> str | None:
    """What lies in a folder in place of weights, and what to do; None if nothing is known."""
    names = sorted(os.listdir(folder))
    if _ADAPTER_CONFIG in names or any(is_adapter(Path(name)) for name in names):
        return adapter_text(folder)
    kinds = {
        ".gguf": "a GGUF file; take the plain folder of the model, with --quantize int4",
        ".incomplete": "an interrupted download; download it again",
        ".part": "an interrupted download; download it again",
        ".msgpack": "Flax weights; take a folder with .safetensors",
        ".h5": "TensorFlow weights; take a folder with .safetensors",
        ".onnx": "an ONNX model; take a folder with .safetensors",
        ".npz": "NumPy or MLX weights; take a folder with .safetensors",
        ".pth": "a PyTorch file; if it holds the model's plain state dict, name it pytorch_model.bin",
        ".pt": "a PyTorch file; if it holds the model's plain state dict, name it pytorch_model.bin",
        ".ckpt": "a training checkpoint; save the model's plain state dict as pytorch_model.bin",
        ".distcp": "a distributed checkpoint; merge it (torch.distributed.checkpoint.format_utils)",
    }
    for ending, text in kinds.items():
        if found := [name for name in names if name.endswith(ending)]:
            return f"{folder} holds no weights that can be read: {shown(found[0])} is {text}"
    return None


def model_type_error(config: Section, accepted: Iterable[str]) -> ConfigError:
    """The error for a `config.json` whose `model_type` isn't one of the accepted ones."""
    model_type = config.get("model_type")
    known = _RELATIVES.get(model_type) if isinstance(model_type, str) else None
    if known is None and isinstance(model_type, str) and _OTHERS.match(model_type.lower()):
        known = "another family of models; use transformers or vLLM for it"
    hint = f". It is {known}" if known else ""
    where, accepted = config.where, ", ".join(accepted)
    return ConfigError(f"{where}: model_type is {shown(model_type)}; accepted: {accepted}{hint}")


def check_config(config: Section) -> None:
    """Raise `ConfigError` for the config of DeepSeek-VL 1 or JanusFlow, which have the `model_type` of Janus,
    and for weights that other software has quantized."""
    if config.get("model_type") == "multi_modality" and config.get("gen_head_config") is None:
        flow = config.get("vision_gen_dec_config") is not None
        if flow or config.get("aligner_config") is not None:
            known = _RELATIVES["janusflow" if flow else "deepseek_vl"]
            raise ConfigError(f"{config.where} has no gen_head_config; accepted: Janus. It is {known}")
    entry = config.get("quantization_config", config.get("compression_config"))
    entry = entry if isinstance(entry, dict) else {}
    method = "mlx" if isinstance(config.get("quantization"), dict) else entry.get("quant_method")
    if entry and method is None and "weights" in entry:
        method = OUR_METHOD
    if isinstance(method, str) and method != OUR_METHOD and not has_fp8_blocks(config):
        raise ConfigError(
            f"{config.where}: quant_method is {shown(method)}; accepted: {OUR_METHOD!r}. The weights are "
            f"quantized by {_METHODS.get(method, shown(method))}: {_PLAIN_FOLDER}"
        )


def has_fp8_blocks(config: Section) -> bool:
    """Whether the weights are fp8 (e4m3) in blocks of 128 x 128 with a scale each, as in DeepSeek-V3."""
    entry = config.get("quantization_config")
    if not isinstance(entry, dict) or entry.get("quant_method") != "fp8":
        return False
    return entry.get("weight_block_size") == [128, 128] and entry.get("fmt", "e4m3") == "e4m3"


def plain_names(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Tensor names without what training tools put before them (`module.`, `_orig_mod.`,
    `base_model.model.`), by the names in the files.

    A prefix goes only if all names have it. Raises `CheckpointError` for weights with an adapter inside, for
    those that other software has quantized, and for two names that become one.
    """
    names = list(names)
    _warn_of_adapter(folder)
    if lora := next((name for name in names if _LORA.search(name)), None):
        raise CheckpointError(
            f"{folder} holds a LoRA adapter inside the weights ({lora!r}); merge it first (peft: "
            "merge_and_unload()) and save the model again"
        )
    for pattern, method in _QUANTIZED:
        if found := next((name for name in names if pattern.search(name)), None):
            raise CheckpointError(
                f"{folder} holds weights that are quantized by {method} ({found!r}); accepted: plain ones: "
                f"{_PLAIN_FOLDER}"
            )
    plain = [_WRAPPERS.sub("", name) for name in names]
    while prefix := next((p for p in _PREFIXES if names and all(n.startswith(p) for n in plain)), None):
        plain = [name.removeprefix(prefix) for name in plain]
    if len(set(plain)) < len(plain):
        twice = next(name for name in plain if plain.count(name) > 1)
        raise CheckpointError(
            f"{folder}: the tensor {twice!r} is there twice, with and without a wrapper's prefix"
        )
    return dict(zip(names, plain, strict=True))


@cache
def _warn_of_adapter(folder: Path) -> None:
    if os.path.isfile(folder / _ADAPTER_CONFIG):
        _log.warning("%s holds an adapter beside the weights, which is not applied", folder)
