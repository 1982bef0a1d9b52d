"""Strict, streaming loading of a checkpoint into a model built on meta.

Names and shapes are compared before the first byte is read. Tensors are then read one by one, so peak memory
is the model's size plus one tensor. At the end the loader asserts that every parameter was filled.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.missing_parts import missing_prefixes
from ..model.quantized_weight import QuantizedWeight
from ..progress import byte_bar
from .formats import TensorEntry
from .key_mapping import (
    KeyMap,
    MatchReport,
    Piece,
    match,
    non_persistent_buffers,
    saved_tensors,
    without_parts,
)
from .quantize import (
    Quantization,
    keep_no_float32,
    quantized_dtypes,
    quantized_key_map,
    replace_with_quantized,
)
from .reader import TensorReader, list_tensors


def load_weights(
    model: nn.Module,
    folder: Path,
    key_map: KeyMap,
    *,
    device: torch.device | str | Callable[[str], torch.device],
    dtype: torch.dtype | None,
    progress: bool | None = None,
    keep_float32: Callable[[str], bool] = keep_no_float32,
    entries: dict[str, TensorEntry] | None = None,
    quantization: Quantization | None = None,
) -> MatchReport:
    """Fill `model`, a plain one built on meta, from the checkpoint in `folder`.

    Tensors go to `device`, which may be a function of the parameter's name. Floating-point tensors become
    `dtype` (None: the file's), or float32 where `keep_float32(name)` is true; others keep their dtype.
    Parameters do not require gradients. Non-persistent buffers (rotary tables) must not be on meta; they are
    only moved. `entries` is the result of `list_tensors(folder)`, if the caller has it already. Tensors of a
    `MissingPart` are skipped. With `quantization`, weights are quantized as they are read, or read as they
    are stored. `progress` shows a bar, as `progress_bar`.

    Raises `CheckpointError` before any weight is loaded if a tensor is missing, unknown, misshapen or
    duplicated; after that only if a file changes or can't be read.
    """
    for name, buffer in non_persistent_buffers(model):
        assert not buffer.is_meta, f"the buffer {name} is not saved, so it can't be on meta"
    key_map = without_parts(key_map, missing_prefixes(model))
    parameters, key_map, encoders = _quantize(model, key_map, quantization)
    pieces, report = match(parameters, list_tensors(folder) if entries is None else entries, key_map)
    if not report.ok:
        raise CheckpointError(f"{folder} does not fit this model: {report.summary()}")
    fixed = quantized_dtypes(model)

    def dtype_of(piece: Piece) -> torch.dtype:
        param = piece.target.param
        if not piece.entry.read_dtype.is_floating_point or param in encoders:
            return piece.entry.read_dtype
        if param in fixed:
            return fixed[param]
        return torch.float32 if keep_float32(param) else dtype or piece.entry.read_dtype

    def device_of(name: str) -> torch.device:
        return device(name) if callable(device) else torch.device(device)

    _Filler(model, parameters, pieces, encoders, device_of, dtype_of).read(progress)
    for name, buffer in non_persistent_buffers(model):
        assign(model, name, buffer.to(device_of(name)))
    unfilled = [name for name, tensor in saved_tensors(model).items() if tensor.is_meta]
    assert not unfilled, f"still on meta after loading: {unfilled[:10]}"
    return report


def _quantize(
    model: nn.Module, key_map: KeyMap, quantization: Quantization | None
) -> tuple[dict[str, Tensor], KeyMap, dict[str, QuantizedWeight]]:
    """Replace the weights to quantize of a model on meta by empty `QuantizedWeight`s.

    Returns the tensors that the files must fill, the key map for them, and, for quantization on loading, the
    `QuantizedWeight` that encodes each parameter as it is read.
    """
    parameters = saved_tensors(model)
    if quantization is None:
        return parameters, key_map, {}
    encoders = replace_with_quantized(model, quantization.kind)
    if not quantization.stored:
        return parameters, key_map, encoders
    return saved_tensors(model), quantized_key_map(key_map, quantized_dtypes(model)), {}


class _Filler:
    """Reads all pieces in file order; a parameter is assigned once its last piece has been read."""

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        pieces: dict[str, list[Piece]],
        encoders: dict[str, QuantizedWeight],
        device_of: Callable[[str], torch.device],
        dtype_of: Callable[[Piece], torch.dtype],
    ) -> None:
        self.model, self.parameters, self.pieces, self.encoders = model, parameters, pieces, encoders
        self.device_of, self.dtype_of = device_of, dtype_of
        self.partial: dict[str, tuple[Tensor, int]] = {}
        """Partly filled parameters, each with the number of pieces still to be read."""
        self.done: set[str] = set()

    def read(self, progress: bool | None) -> None:
        queue = [piece for group in self.pieces.values() for piece in group]
        queue.sort(key=lambda piece: (str(piece.entry.file), piece.entry.offset))
        total = sum(piece.entry.nbytes for piece in queue)
        with TensorReader() as reader, byte_bar(total, "loading weights", progress) as bar:
            for piece in queue:
                device = self.device_of(piece.target.param)
                self._add(piece, reader.read(piece.entry).to(device=device, dtype=self.dtype_of(piece)))
                bar.update(piece.entry.nbytes)
        missing = self.parameters.keys() - self.done
        assert not missing, f"not filled: {sorted(missing)[:10]}"

    def _add(self, piece: Piece, tensor: Tensor) -> None:
        param = piece.target.param
        shape, group = self.parameters[param].shape, self.pieces[param]
        if len(group) == 1:
            self._assign(param, tensor.view(shape))
            return
        if param not in self.partial:
            dtype = promoted(map(self.dtype_of, group))
            self.partial[param] = torch.empty(shape, dtype=dtype, device=tensor.device), len(group)
        whole, missing = self.partial.pop(param)
        piece.fill(whole, tensor)
        if missing == 1:
            self._assign(param, whole)
        else:
            self.partial[param] = whole, missing - 1

    def _assign(self, param: str, tensor: Tensor) -> None:
        assert param not in self.done, f"{param} is filled twice"
        self.done.add(param)
        if param not in self.encoders:
            assign(self.model, param, tensor)
            return
        for leaf, buffer in self.encoders[param].encode(tensor).items():
            setattr(self.encoders[param], leaf, buffer)


def promoted(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype that can represent the values of all `dtypes`."""
    return reduce(torch.promote_types, dtypes)


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter (by one without gradients) or a buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)
