"""A folder's tensors as they are written under a model's own names, unchanged or quantized."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.quantized_linear import QuantizedWeight
from .formats import TensorEntry
from .hub import open_model
from .key_mapping import KeyMap, Piece, compare, group_by_parameter, saved_tensors
from .loader import fill
from .quantize import CONFIG_KEY, pick_quantization, quantizable_weights, quantization_config
from .reader import TensorReader
from .writer import TensorSpec


def merged_specs(
    wanted: dict[str, Tensor], pieces: dict[str, list[Piece]], reader: TensorReader
) -> Iterator[TensorSpec]:
    """Each parameter with its pieces in one tensor."""
    for param, target in wanted.items():
        group = pieces[param]
        dtype = _dtype(group)
        yield param, partial(_merge, group, target.shape, dtype, reader), tuple(target.shape), dtype


def _dtype(group: list[Piece]) -> torch.dtype:
    dtype = group[0].entry.dtype
    for piece in group[1:]:
        dtype = torch.promote_types(dtype, piece.entry.dtype)
    return dtype


def _merge(group: list[Piece], shape: torch.Size, dtype: torch.dtype, reader: TensorReader) -> Tensor:
    whole = torch.empty(shape, dtype=dtype)
    for piece in group:
        fill(whole, piece, reader.read(piece.entry))
    return whole


@dataclass(frozen=True)
class QuantizedWriter:
    """Writes a folder's weights quantized. `network` is its model, plain, on meta; `key_map` takes the names
    in the files."""

    network: nn.Module
    key_map: Callable[[Iterable[str]], KeyMap]
    kind: str

    def specs(self, src: Path, entries: dict[str, TensorEntry], reader: TensorReader) -> list[TensorSpec]:
        """What to write, nothing read yet. `CheckpointError` if the tensors do not fit the model,
        `OptionError` if they are quantized otherwise."""
        quantization = pick_quantization(open_model(src), self.kind)
        if quantization is not None and quantization.stored:
            return [(e.name, partial(reader.read, e), e.shape, e.dtype) for e in entries.values()]
        wanted = saved_tensors(self.network)
        pieces, unknown, unused = group_by_parameter(entries.values(), self.key_map(entries))
        report = compare(wanted, pieces, unknown, unused)
        if not report.ok:
            raise CheckpointError(f"{src} does not fit its config.json: {report.summary()}")
        found, specs = quantizable_weights(self.network), []
        for spec in merged_specs(wanted, pieces, reader):
            specs += self._encoded(spec, *found[spec[0]]) if spec[0] in found else [spec]
        return specs

    def _encoded(self, spec: TensorSpec, name: str, shape: tuple[int, ...]) -> list[TensorSpec]:
        """One weight's codes and scales. It is read again for each, so that none has to wait in memory."""
        with torch.device("meta"):
            weight = QuantizedWeight(self.kind, shape)

        def make(leaf: str) -> Tensor:
            return weight.encode(spec[1]())[leaf]

        buffers = weight.named_buffers()
        return [(f"{name}.{leaf}", partial(make, leaf), tuple(b.shape), b.dtype) for leaf, b in buffers]

    def config(self, content: dict[str, Any]) -> dict[str, Any]:
        """`config.json` with the quantization stated."""
        return {**content, CONFIG_KEY: quantization_config(self.kind)}
