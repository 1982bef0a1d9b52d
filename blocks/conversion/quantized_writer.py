"""The tensors to write for a model folder: merged under the model's names, unchanged, quantized, or stored in
8 bits."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.formats import TensorEntry
from ..checkpoints.hub import open_model
from ..checkpoints.key_mapping import KeyMap, Piece, match, saved_tensors
from ..checkpoints.loader import promoted
from ..checkpoints.quantize import CONFIG_KEY, pick_quantization, quantizable_weights, quantization_config
from ..checkpoints.reader import SCALE, TensorReader
from ..errors import CheckpointError, OptionError
from ..kernels.codec import SCALE_DTYPE, encode
from ..model.quantized_weight import QuantizedWeight
from .merge import Merge
from .writer import TensorSpec

_MIN_SIDE = 64  # rows, and numbers in them, of weights that `stored_in_int8` changes


def merged_specs(
    model: nn.Module, folder: Path, entries: dict[str, TensorEntry], key_map: KeyMap, reader: TensorReader
) -> Iterator[TensorSpec]:
    """The parameters of `model`, which is on meta, each merged from the pieces that fill it.

    Raises `CheckpointError` before anything is read if the tensors do not match the model.
    """
    parameters = saved_tensors(model)
    pieces, report = match(parameters, entries, key_map)
    if not report.ok:
        raise CheckpointError(f"{folder} does not fit its config.json: {report.summary()}")
    for param, target in parameters.items():
        group = pieces[param]
        dtype = promoted(piece.entry.read_dtype for piece in group)
        yield param, partial(_merge, group, target.shape, dtype, reader), tuple(target.shape), dtype


def _merge(group: list[Piece], shape: torch.Size, dtype: torch.dtype, reader: TensorReader) -> Tensor:
    whole = torch.empty(shape, dtype=dtype)
    for piece in group:
        piece.fill(whole, reader.read(piece.entry))
    return whole


def unchanged_specs(entries: Iterable[TensorEntry], reader: TensorReader) -> list[TensorSpec]:
    """The tensors of a folder, unchanged, but for fp8 weights in blocks and those stored in int8, which
    become bfloat16."""

    def spec(entry: TensorEntry) -> TensorSpec:
        if entry.scale is None:
            return entry.name, partial(reader.read, entry), entry.shape, entry.dtype
        return entry.name, lambda: reader.read(entry).bfloat16(), entry.shape, torch.bfloat16

    return [spec(entry) for entry in entries]


def stored_in_int8(specs: Iterable[TensorSpec]) -> Iterator[TensorSpec]:
    """The tensors with the large weights in int8: `w = scale * code` with one scale for each row (index of
    the first dimension), under the weight's name and the name with `SCALE`. They are plain weights again as
    they are read, so that nothing but the files gets smaller.

    Large are matrices, convolutions and embeddings with 64 rows and more of 64 numbers and more. A codebook
    of short codes keeps its precision, and so do routers.
    """
    for spec in specs:
        name, make, shape, dtype = spec
        large = len(shape) > 1 and min(shape[0], prod(shape[1:])) >= _MIN_SIDE
        if not large or not dtype.is_floating_point or name.endswith(".gate.weight"):
            yield spec
            continue
        yield name, partial(_int8_codes, make), shape, torch.int8
        yield f"{name}{SCALE}", partial(_int8_scale, make), shape[:1], SCALE_DTYPE


def _int8_codes(make: Callable[[], Tensor]) -> Tensor:
    weight = make()
    return encode(weight.flatten(1), "int8").codes.view(weight.shape)


def _int8_scale(make: Callable[[], Tensor]) -> Tensor:
    scale = encode(make().flatten(1), "int8").scale
    assert scale is not None
    return scale


@dataclass(frozen=True)
class QuantizedWriter:
    """Quantizes a folder's weights for writing.

    `network` is its plain model on meta; `key_map` returns the key map for the tensor names in the files.
    """

    network: nn.Module
    key_map: Callable[[Iterable[str]], KeyMap]
    kind: str
    merge: Merge = list
    """Changes the plain weights before they are quantized."""

    def specs(self, src: Path, entries: dict[str, TensorEntry], reader: TensorReader) -> list[TensorSpec]:
        """What to write; nothing is read yet. Raises `CheckpointError` if the tensors do not match the model,
        `OptionError` if the folder is quantized to another kind."""
        quantization = pick_quantization(open_model(src), self.kind)
        if quantization is not None and quantization.stored:
            if self.merge is not list:
                raise OptionError(f"{src} is quantized already; adapters are merged into plain weights only")
            return unchanged_specs(entries.values(), reader)
        quantizable, specs = quantizable_weights(self.network), []
        for spec in self.merge(merged_specs(self.network, src, entries, self.key_map(entries), reader)):
            specs += self._encoded(spec, *quantizable[spec[0]]) if spec[0] in quantizable else [spec]
        return specs

    def _encoded(self, spec: TensorSpec, name: str, shape: tuple[int, ...]) -> list[TensorSpec]:
        """A weight's codes and scales. The weight is read again for each, so that none is kept in memory."""
        with torch.device("meta"):
            weight = QuantizedWeight(self.kind, shape)

        def make(leaf: str) -> Tensor:
            return weight.encode(spec[1]())[leaf]

        buffers = weight.named_buffers()
        return [(f"{name}.{leaf}", partial(make, leaf), tuple(b.shape), b.dtype) for leaf, b in buffers]

    def config(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content of `config.json` with the quantization added."""
        return {**content, CONFIG_KEY: quantization_config(self.kind)}
