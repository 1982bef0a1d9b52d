"""The arguments of `from_pretrained` that users of transformers expect, beside our own.

They are honoured, change nothing, or are refused by name with what to do instead.
"""

from collections.abc import Iterable
from typing import Any

import torch

from ..checkpoints.formats import TensorEntry
from ..checkpoints.hub import ModelFolder, open_model
from ..device import DTYPES
from ..errors import OptionError

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")
_CHANGES_NOTHING: dict[str, tuple[Any, ...]] = {
    "attn_implementation": (None, "eager", "sdpa"),
    "config": (None,),
    "ignore_mismatched_sizes": (None, False),
    "load_in_4bit": (None, False),
    "load_in_8bit": (None, False),
    "low_cpu_mem_usage": (None, True, False),
    "offload_folder": (None,),
    "quantization_config": (None,),
    "state_dict": (None,),
    "subfolder": (None, ""),
    "trust_remote_code": (None, True, False),
    "use_safetensors": (None, True),
    "variant": (None,),
}
"""Values with which nothing would be different."""
_INSTEAD = {
    "attn_implementation": "leave it out; the device decides how attention is computed",
    "config": "change config.json in a copy of the folder",
    "load_in_4bit": "quantize='int4'",
    "load_in_8bit": "quantize='int8'",
    "offload_folder": "device_map='auto', which offloads to the machine's memory, never to the disk",
    "quantization_config": "quantize='int4', 'int8' or 'fp8'",
    "state_dict": "save the weights in a folder and give that",
    "subfolder": "give the inner folder itself",
    "use_safetensors": "leave it out; .safetensors is preferred, and .bin is read without running code",
    "variant": "leave it out and say dtype, such as 'float16'",
}


def open_pretrained(
    model: str | ModelFolder | Any, revision: str | None, more: dict[str, Any]
) -> tuple[ModelFolder, dict[str, Any]]:
    """The model's folder, opened with the hub's arguments among `more`, and the others of these.

    Raises `CheckpointError`, and `OptionError` for an argument that isn't accepted.
    """
    known = {*HUB_ARGUMENTS, *_CHANGES_NOTHING, "torch_dtype"}
    for name, value in more.items():
        if name not in known:
            raise OptionError(f"from_pretrained has no argument {name!r}; its documentation lists them")
        if name in _CHANGES_NOTHING and value not in _CHANGES_NOTHING[name]:
            instead = _INSTEAD.get(name, "leave it out")
            raise OptionError(f"{name} is {str(value)[:200]!r}, which can't be honoured; instead: {instead}")
    hub = {name: value for name, value in more.items() if name in HUB_ARGUMENTS}
    revision = None if revision == "main" else revision  # the default on the hub
    return open_model(model, revision, **hub), {n: v for n, v in more.items() if n not in HUB_ARGUMENTS}


def pick_dtype(
    dtype: str | torch.dtype | None, more: dict[str, Any], entries: Iterable[TensorEntry]
) -> str | torch.dtype | None:
    """`dtype`, or its older name `torch_dtype`; for `auto` the one of most weights in the files.

    Raises `OptionError` if both are given and differ.
    """
    old = more.get("torch_dtype")
    given = [_plain(value) for value in (dtype, old) if value is not None]
    if len(set(given)) > 1:
        raise OptionError(f"dtype is {dtype!r} and torch_dtype {old!r}; accepted: one of them, or the same")
    if given != ["auto"]:
        return given[0] if given else None
    sizes: dict[torch.dtype, int] = {}
    for entry in entries:
        if entry.dtype in DTYPES.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else None


def _plain(dtype: Any) -> Any:
    """A dtype's one name among those that mean the same."""
    if isinstance(dtype, str):
        name = dtype.removeprefix("torch.")
        return DTYPES.get(name, name)
    return dtype
