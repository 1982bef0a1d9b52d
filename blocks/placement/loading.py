"""Loading a model: choose its placement, read the weights, and attach the hooks that offload them."""

from collections.abc import Callable
from functools import partial
from typing import cast

from torch import nn

from ..checkpoints.formats import TensorEntry
from ..checkpoints.hub import ModelFolder
from ..checkpoints.key_mapping import KeyMap
from ..checkpoints.loader import load_weights
from ..checkpoints.quantize import decoder_name, keep_no_float32
from ..checkpoints.reader import list_tensors
from ..kernels.batch_invariant import use_batch_invariant_libraries
from ..model.decoder import Decoder
from .device_map import LoadOptions, choose_placement
from .fp8_blocks import quantized_tensors
from .tensor_parallel import decoder_pieces, load_pieces, rank_entries


def load_model(
    model: nn.Module,
    folder: ModelFolder,
    key_map: KeyMap,
    options: LoadOptions,
    *,
    keep_float32: Callable[[str], bool] = keep_no_float32,
    entries: dict[str, TensorEntry] | None = None,
) -> None:
    """Fill `model`, a plain one built on meta, from `folder` and make it ready to compute.

    `keep_float32` and `entries` are those of `load_weights`. Raises `CheckpointError`, and, before anything
    is loaded, `OptionError` for options that are not accepted and for weights that exceed the free memory.
    """
    entries, key_map, quantization = quantized_tensors(model, folder, options.quantize, entries, key_map)
    kind = None if quantization is None else quantization.kind
    placement, dtype = choose_placement(folder.name, model, options, kind, keep_float32)
    decoder = cast(Decoder, model.get_submodule(decoder_name(model)))
    ranks, main_rank = options.ranks, None
    if ranks > 1:
        from .main_rank import MainRank  # torch.distributed

        entries = list_tensors(folder.path) if entries is None else entries
        pieces = decoder_pieces(model, entries, key_map)
        entries = rank_entries(model, entries, key_map, 0, ranks)
        load = partial(load_pieces, folder.path, pieces, keep_float32, ranks)
        main_rank = MainRank(decoder, ranks, placement.main, dtype, load)
    load_weights(
        model,
        folder.path,
        key_map,
        device=placement.device_of,
        dtype=dtype,
        progress=options.progress,
        keep_float32=keep_float32,
        entries=entries,
        quantization=quantization,
    )
    if placement.uses_several_devices:
        from .offload import attach_hooks  # needs accelerate

        attach_hooks(model, placement)
    use_batch_invariant_libraries(placement.main)
    decoder.capture = options.capture
    model.eval()
    if main_rank is not None:
        main_rank.connect()
        decoder.group = main_rank
