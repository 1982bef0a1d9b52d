"""The kind `adapters`: folders of LoRA adapters with changed settings, names, shapes, numbers or bytes."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from cases import Kind
from commands import JANUS, VL2, run_commands, warm_up
from mutate import INTEGERS, WORDS, mutate_bytes, mutate_json
from safetensors.torch import load_file, save
from torch import Tensor

SETTINGS = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "init_lora_weights": True,
    "base_model_name_or_path": str(JANUS), "target_modules": ["q_proj", "down_proj"],
    "target_parameters": ["experts.down"], "alpha_pattern": {"q_proj": 3}, "rank_pattern": {},
    "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "modules_to_save": ["gen_head"],
    "layers_pattern": None, "lora_bias": False, "megatron_config": None,
}  # fmt: skip
_RANK = 4
_PREFIX = "base_model.model."
_ODD = (torch.int64, torch.bool, torch.uint8, torch.float64, torch.float8_e4m3fn, torch.bfloat16)


def _tensors(family: Path) -> dict[str, Tensor]:
    """A sound adapter of a few layers, and of stacked experts or a head."""
    tensors: dict[str, Tensor] = {}
    weights = load_file(family / "model.safetensors")
    layers = [name for name in weights if ".layers." in name and ".experts." not in name]
    ends = ("layers.0.self_attn.q_proj.weight", "down_proj.weight")
    for name in [name for name in layers if name.endswith(ends)][:3]:
        outputs, inputs = weights[name].shape
        module = _PREFIX + name.removesuffix(".weight")
        tensors[f"{module}.lora_A.weight"] = torch.full((_RANK, inputs), 0.01)
        tensors[f"{module}.lora_B.weight"] = torch.full((outputs, _RANK), 0.01)
    for name in [name for name in weights if name.startswith("gen_head.")][:2]:
        tensors[_PREFIX + name] = weights[name]
    return tensors


def build(rng: random.Random, folder: Path) -> list[list[object]]:
    """A case: the commands that read an adapter."""
    family = rng.choice((JANUS, JANUS, VL2))
    adapter, tensors, settings = folder / "adapter", _tensors(family), mutate_settings(rng)
    adapter.mkdir()
    for _ in range(rng.choice((0, 1, 1, 2))):
        _change(rng, tensors)
    data = save({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    if rng.random() < 0.2:
        data = mutate_bytes(rng, data, 8 + int.from_bytes(data[:8], "little"))
    old = rng.random() < 0.1
    (adapter / ("adapter_model.bin" if old else "adapter_model.safetensors")).write_bytes(data)
    (adapter / "adapter_config.json").write_bytes(settings)
    scale = rng.choice(("", "", ":0.5", ":-1", ":nan", ":1e30", ":1e400", ":x"))
    use: list[object] = ["ask", "What is red?", "-m", family, "--eager", "--device", "cpu"]
    use += ["--max-new-tokens", "1", "--adapter", f"{adapter}{scale}"]
    if rng.random() < 0.2:
        use += ["--quantize", "int8"]
    convert: list[object] = ["convert", family, folder / "new", "--merge-adapter", f"{adapter}{scale}"]
    info: list[object] = ["info", adapter, *rng.choice(([], ["--json"]))]
    return [info, rng.choice((use, use, convert))]


def mutate_settings(rng: random.Random) -> bytes:
    """The settings, mostly as they are or with one other value, else changed as JSON."""
    settings: dict[str, Any] = dict(SETTINGS)
    if rng.random() < 0.8:
        if rng.random() < 0.4:
            name = rng.choice(list(settings))
            number = rng.choice(INTEGERS) * rng.choice((1, -1))
            other = rng.choice((None, True, number, 1e300, [], {}, rng.choice(WORDS), ["x"] * 999))
            settings[name] = other
        return json.dumps(settings).encode()
    return mutate_json(rng, settings)


def _change(rng: random.Random, tensors: dict[str, Tensor]) -> None:
    """Change a tensor, or its name."""
    if not tensors:
        return
    name = rng.choice(list(tensors))
    tensor, what = tensors[name], rng.randrange(8)
    if what == 0:
        del tensors[name]
    elif what == 1:
        del tensors[name]
        parts = name.split(".")
        parts[rng.randrange(len(parts))] = rng.choice((*WORDS, "layers", "99", "lora_A", "base_layer"))
        tensors[".".join(parts).encode("utf-8", "replace").decode()] = tensor
    elif what == 2:
        sizes = (tensor[:-1], tensor[..., :-1], tensor[None], tensor.flatten(), tensor[:0], tensor.T)
        tensors[name] = rng.choice(sizes)
    elif what == 3:
        value = rng.choice((torch.inf, -torch.inf, torch.nan, 3e38, 1e-40))
        tensors[name] = torch.full_like(tensor, value)
    elif what == 4:
        tensors[name] = tensor.to(rng.choice(_ODD))
    elif what == 5:
        nested = name.replace(".lora_", f"{'.base_layer' * rng.choice((1, 2, 300))}.lora_")
        tensors[nested] = tensor
    elif what == 6:
        rank = rng.choice((0, 1, 4097, 20_000))
        for other in [one for one in tensors if ".lora_" in one]:
            shape = tensors[other].shape
            is_a = ".lora_A" in other
            tensors[other] = torch.zeros(rank, shape[-1]) if is_a else torch.zeros(shape[0], rank)
    else:
        tensors |= {f"{_PREFIX}x{index}.lora_A.weight": tensor for index in range(rng.choice((1, 300)))}


ADAPTERS = Kind("adapters", build, run_commands, prepare=warm_up, memory=1000, seconds=30)
