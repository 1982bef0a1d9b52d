"""What a loaded pipeline can do as a whole: move, be saved, and be passed to another process."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from ... import __version__
from ..checkpoints.hub import ModelFolder
from ..checkpoints.key_mapping import non_persistent_buffers, saved_tensors
from ..checkpoints.loader import assign
from ..checkpoints.quantize import (
    CONFIG_KEY,
    check_device,
    keep_no_float32,
    quantization_config,
    quantized_dtypes,
)
from ..conversion.convert import copied_files, new_folder, write_model
from ..conversion.writer import TensorSpec
from ..device import DTYPES, graph_capture_lock, plain_torch, resolve_device, resolve_dtype
from ..errors import CheckpointError, OptionError, UnknownWordsWarning
from ..kernels.batch_invariant import use_batch_invariant_libraries
from ..model.decoder import Decoder
from ..model.missing_parts import missing_prefixes
from ..model.quantized_weight import QuantizedWeight
from ..vocabulary import FILE as VOCABULARY
from ..vocabulary import WORKS, Vocabulary, Work, read_vocabulary
from .adapters import AdapterMethods, unpack
from .fingerprint import model_fingerprint

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Source:
    """Where a pipeline was loaded from, and with which arguments of `from_pretrained`."""

    folder: ModelFolder
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        # The working directory may be another one later, or in another process.
        path = Path(os.path.abspath(self.folder.path))
        object.__setattr__(self, "folder", ModelFolder(self.folder.name, path))

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The words that the model knows; None for one of all words. Raises `ConfigError`."""
        return read_vocabulary(self.folder.path)

    @cached_property
    def fingerprint(self) -> str | None:
        """The first 16 digits of the folder's `model_fingerprint`; None if it is no longer there."""
        with suppress(CheckpointError, OSError):
            return model_fingerprint(self.folder.path)[:16]
        return None


class _Model(Protocol):
    @property
    def decoder(self) -> Decoder: ...


class LoadedPipeline(AdapterMethods):
    """A model that `from_pretrained` has loaded."""

    model: Any
    name: str
    source: Source | None = None
    """None for a pipeline that was put together by hand."""
    taught: Mapping[Work, frozenset[str]] = MappingProxyType({})
    """Words that training has added, by kind of work; those of loaded adapters are not among them."""
    keep_float32: Callable[[str], bool] = staticmethod(keep_no_float32)
    """Whether the named parameter stays float32 whatever the dtype."""

    @property
    def device(self) -> torch.device:
        """The device that takes inputs; the main one of a model on several devices."""
        return self.model.decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return self.model.decoder.dtype

    def __repr__(self) -> str:
        parts = {"device": self.device.type, "dtype": str(self.dtype).removeprefix("torch.")}
        arguments = {} if self.source is None else self.source.arguments
        more = {
            "quantize": self.quantization,
            **{key: arguments.get(key) for key in ("parts", "device_map", "tensor_parallel")},
        }
        parts |= {key: value for key, value in more.items() if value not in (None, "all")}
        listed = ", ".join(f"{key}={value!r}" for key, value in parts.items())
        return f"{type(self).__name__}({self.name!r}, {listed})"

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words that the model knows, and those it was taught; None for one of all words."""
        known = None if self.source is None else self.source.vocabulary
        return known and known.with_words(self.taught_words)

    @property
    def taught_words(self) -> dict[Work, frozenset[str]]:
        """Words that training and loaded adapters have added, by kind of work."""
        adapters = self._adapters.adapters.values() if self._adapters else ()
        sets = [self.taught, *(adapter.words for adapter in adapters)]
        return {work: frozenset().union(*(words.get(work, ()) for words in sets)) for work in WORKS}

    @property
    def quantization(self) -> str | None:
        """The kind of the decoder's quantized weights; None without."""
        kinds = (module.kind for module in self.model.modules() if isinstance(module, QuantizedWeight))
        return next(kinds, None)

    def unknown_words(self, texts: Iterable[str], work: Work) -> str | None:
        """A line about words that the model doesn't know; None without any, and for models of all words.
        Of a folder's path it has the last part alone: a server and the page show the line to anyone."""
        vocabulary = self.vocabulary
        warning = None if vocabulary is None else vocabulary.warning(texts, work)
        name = Path(self.name).name if os.path.isdir(self.name) else self.name
        return None if warning is None else f"{name} {warning}"

    def warn_of_unknown_words(self, texts: Iterable[str], work: Work) -> None:
        """Issue an `UnknownWordsWarning` with `unknown_words`, at the line that called into Bifrons."""
        if (warning := self.unknown_words(texts, work)) is not None:
            level, frame = 1, sys._getframe()
            while frame.f_back and frame.f_globals["__name__"].startswith(f"{_PACKAGE}."):
                level, frame = level + 1, frame.f_back
            warnings.warn(warning, UnknownWordsWarning, stacklevel=level)

    @property
    def description(self) -> dict[str, str]:
        """What results depend on besides the arguments of a call, as texts: the settings of its pictures."""
        fingerprint = None if self.source is None else self.source.fingerprint
        return {
            "model": self.name,
            **({} if fingerprint is None else {"fingerprint": fingerprint}),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantize": self.quantization or "none",
            "device": self.device.type,
            **({"adapters": json.dumps(self.adapter_settings)} if self.adapters else {}),
            "software": "Bifrons",
            "version": __version__,
        }

    def to(
        self,
        *where: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Any:
        """Move the weights to a device, cast them to a dtype, or both; returns the pipeline itself.

        `pipe.to("cuda")`, `pipe.to(torch.float16)`. Quantized weights are moved, not cast. Raises
        `OptionError` for what `from_pretrained` doesn't accept, and for a model spread over devices.
        """
        for one in where:
            if isinstance(one, torch.dtype) or (isinstance(one, str) and one in DTYPES):
                dtype = one
            else:
                device = one
        target = self.device if device is None else resolve_device(device)
        kind = self.dtype if dtype is None else resolve_dtype(dtype, target)
        decoder = self.model.decoder.base or self.model.decoder
        if decoder.layout is not None or decoder.group is not None:
            raise OptionError("the model is spread over several devices; load it again for another place")
        if target.type == "meta":
            raise OptionError("device 'meta' holds no numbers; accepted: cpu, cuda, cuda:N, mps")
        if (quantization := self.quantization) is not None:
            check_device(quantization, target)
        with graph_capture_lock, plain_torch():
            if self._adapters is not None:
                self.model = self._adapters.base
            self._move(target, kind)
            if self._adapters is not None:
                self._adapters.rebuild()
                self.model = self._adapters.model
        if decoder.capture and target.type != "cuda":
            decoder.capture = None
        use_batch_invariant_libraries(target)
        return self

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        unpack(self.model)
        fixed = {*quantized_dtypes(self.model), *(name for name, _ in non_persistent_buffers(self.model))}
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            casts = tensor.is_floating_point() and name not in fixed
            kind = torch.float32 if self.keep_float32(name) else dtype
            moved = tensor.detach().to(device, kind if casts else tensor.dtype)
            if (moved.device, moved.dtype) != (tensor.device, tensor.dtype):
                assign(self.model, name, moved)

    def save_pretrained(self, folder: str | os.PathLike[str], max_shard_bytes: int = 5_000_000_000) -> Path:
        """Write the model, as it is in memory, to a new or empty folder that `from_pretrained` loads.

        The weights have the dtype in which they are loaded, and stay quantized if they are; load the folder
        with `dtype="auto"` for equal results. Returns the folder. Raises `CheckpointError` if it can't be
        written, and `OptionError` for a model of which parts were not loaded or are on other devices.
        """
        if self.source is None:
            raise OptionError(
                "this pipeline was not made by from_pretrained; its tokenizer's files are unknown"
            )
        decoder = self.model.decoder
        if decoder.layout is not None or decoder.group is not None or missing_prefixes(self.model):
            raise OptionError(
                "only a whole model on one device is saved; load it with parts='all' and no device_map or "
                "tensor_parallel, or use `bifrons convert`"
            )
        if self._adapters is not None and self._adapters.beside and self.adapters:
            raise OptionError(
                "a model with adapters beside its weights is not saved; merge them with `bifrons convert "
                "MODEL FOLDER --merge-adapter ADAPTER`, or unload them"
            )
        unpack(self.model)
        src, dst = self.source.folder.path, new_folder(folder)
        files = self.files_to_save(src, str(self.dtype).removeprefix("torch."))
        if (kind := self.quantization) is not None:
            files["config.json"] = {**files["config.json"], CONFIG_KEY: quantization_config(kind)}
        tensors = saved_tensors(self.model).items()
        specs = [spec for name, tensor in tensors for spec in self._specs(name, tensor)]
        copied = copied_files(src, original=len(files) == 1)
        if (vocabulary := self.vocabulary) is not None and vocabulary.taught:
            files[VOCABULARY] = vocabulary.content()
        return write_model(dst, specs, files, copied, max_shard_bytes=max_shard_bytes, progress=False)

    def _specs(self, name: str, tensor: Tensor) -> Iterator[TensorSpec]:
        for stored, part in self.tensors_to_save(name, tensor.detach()):
            yield stored, partial(_as_it_is, part), tuple(part.shape), part.dtype

    def files_to_save(self, src: Path, dtype: str) -> dict[str, dict[str, Any]]:
        """The JSON files to write in place of those in `src`, `config.json` among them."""
        assert self.source is not None
        config = self.source.folder.config.values
        return {"config.json": {key: value for key, value in config.items() if key != CONFIG_KEY}}

    def tensors_to_save(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The names and tensors in the files of a parameter or buffer."""
        yield name, tensor

    def __copy__(self) -> Any:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled is where the model was loaded from: unpickling, also in another process, loads it again."""
        if self.source is None or any(parameter.requires_grad for parameter in self.model.parameters()):
            raise OptionError(
                "this pipeline can't be passed on, since it was changed or put together in memory; save it "
                "with save_pretrained(folder) and give the other process the folder to load"
            )
        arguments = dict(self.source.arguments)
        if arguments.get("device_map") is None:
            arguments |= {"device": str(self.device), "dtype": self.dtype}
        return _load_again, (type(self), self.source.folder, arguments, self.adapter_arguments)


def _load_again(
    pipeline: Any, folder: ModelFolder, arguments: dict[str, Any], adapters: list[tuple[Path, str, float]]
) -> Any:
    pipe = pipeline.from_pretrained(folder, **arguments)
    for adapter in adapters:
        pipe.load_adapter(*adapter)
    return pipe


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
