"""The kind `safetensors`, and how all weights are read: listed, then one by one."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import torch
from bifrons.blocks.checkpoints.reader import TensorReader, list_tensors
from bifrons.blocks.errors import BifronsError
from cases import Kind
from commands import JANUS, VL2, link_folder, run_command, warm_up
from mutate import INTEGERS, WORDS, mutate_bytes, mutate_json
from safetensors.torch import save

TENSORS = {
    "a.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "b": torch.ones(3, 5, dtype=torch.bfloat16),
    "c": torch.arange(7, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float16),
    "mask": torch.tensor([True, False]),
    "bytes": torch.arange(200, dtype=torch.uint8),
}


def read_folder(folder: Path) -> None:
    """Describe the folder, then list its tensors and read each. Raises the refusal, if any."""
    refusal: BifronsError | None = None
    try:
        run_command("info", folder)
    except BifronsError as error:
        refusal = error
    entries = list_tensors(folder)
    with TensorReader() as reader:
        for entry in entries.values():
            tensor = reader.read(entry)
            assert tuple(tensor.shape) == entry.shape
            assert tensor.dtype == entry.dtype
    if refusal is not None:
        raise refusal


def build_safetensors(rng: random.Random, folder: Path) -> Path:
    """A model folder with a damaged `model.safetensors`: seven small tensors, or now and then a model's."""
    family = rng.choice((JANUS, VL2))
    data = (VL2 / "model.safetensors").read_bytes() if rng.random() < 0.1 else save(TENSORS, {"format": "pt"})
    model = link_folder(family, folder / "model", "model.safetensors")
    (model / "model.safetensors").write_bytes(_damaged_safetensors(rng, data))
    return model


def _damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    what = rng.randrange(9)
    if what == 0:
        return mutate_bytes(rng, data, 8 + length)
    if what == 1:
        return struct.pack("<Q", rng.choice(INTEGERS) % 2**64) + data[8:]
    if what == 2:
        return (
            data[: rng.randrange(len(data))]
            if rng.random() < 0.5
            else data + rng.randbytes(rng.randrange(99))
        )
    if what == 3:
        encoding = rng.choice(
            ("utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-be", "utf-8-sig", "latin-1")
        )
        text = json.dumps(header).encode(encoding)
        return struct.pack("<Q", len(text)) + text + body
    if what == 4:
        _change_entry(rng, header)
        text = json.dumps(header).encode()
    elif what == 5:
        header[rng.choice(WORDS)] = header.pop(rng.choice(list(header)))
        text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    elif what == 6:
        header["__metadata__"] = rng.choice(
            (None, 5, [], {"a": 1}, {"x" * 999: "y" * 9999}, {"a": {"b": []}}, "x")
        )
        text = json.dumps(header).encode()
    else:
        text = mutate_json(rng, header)
    text += b" " * rng.choice((0, 0, 1, 8, 10**6))
    return struct.pack("<Q", len(text)) + text + body


def _change_entry(rng: random.Random, header: dict[str, Any]) -> None:
    """Give one tensor another shape, place or dtype."""
    entry = header[rng.choice([name for name in header if name != "__metadata__"])]
    field = rng.choice(("shape", "data_offsets", "dtype"))
    if field == "dtype":
        entry[field] = rng.choice(("F4", "F8_E8M0", "f32", "F32", "I64", "C64", "BOOL", "", None, 5, ["F32"]))
    elif field == "shape":
        number = rng.choice(INTEGERS)
        shapes = (
            [number],
            [number, 0],
            [0, number, number],
            [1] * 70,
            [1] * 5000,
            [],
            [-1, -24],
            [True, 24],
            [24.0],
        )
        entry[field] = rng.choice(shapes)
    else:
        begin, end = entry[field]
        changed = (
            [begin, begin],
            [end, begin],
            [begin + 1, end + 1],
            [0, end - begin],
            [begin],
            [rng.choice(INTEGERS)] * 2,
        )
        entry[field] = rng.choice(
            (*changed, [-8, end], [begin, end, end], [float(begin), end], [begin, 2**64])
        )


SAFETENSORS = Kind("safetensors", build_safetensors, read_folder, warm_up)
