"""Where a model runs, in which precision, and how much memory is free there.

No other module decides or assumes a default device or dtype.
"""

import math
import mmap
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .errors import BifronsError, OptionError
from .torch_threads import computing_threads, suitable_threads

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Pipeline = TypeVar("Pipeline", bound="_OnDevice")
_LARGE = 1 << 26
"""Bytes of a tensor from which its pages are worth being mapped one by one."""

graph_capture_lock = threading.RLock()
"""Held while a CUDA graph is captured. All captures on a device share a stream, so work that another thread
launches on it would be captured too. Also held by whatever moves weights or changes how a model computes."""


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device; None picks CUDA, else Apple's MPS, else the CPU. Raises `OptionError` if it is missing."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device is {device!r}; accepted: cpu, cuda, cuda:N, mps") from error
    if chosen.type not in ("cpu", "cuda", "mps", "meta"):
        raise OptionError(f"device is {str(chosen)!r}; accepted: cpu, cuda, cuda:N, mps")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"device {str(chosen)!r} is not there: this machine has {torch.cuda.device_count()} CUDA GPUs"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("device 'mps' is not there: accepted on Apple silicon only")
    return chosen


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype; None means float32 on the CPU, bfloat16 on a GPU that supports it, else float16.

    Few CPUs have fast half-precision products, and float32 is the reference for comparisons. Raises
    `OptionError`.
    """
    if dtype is None:
        if device.type in ("cpu", "meta"):
            return torch.float32
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.float16
        return torch.bfloat16
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise OptionError(f"dtype is {dtype!r}; accepted: {', '.join(DTYPES)}")
    return chosen


def check_capture(capture: object, device: torch.device) -> bool | None:
    """The `capture` option, checked. Raises `OptionError` if it is True without CUDA."""
    if capture not in (None, True, False):
        raise OptionError(f"capture is {capture!r}; accepted: True, False, or None for where it is possible")
    if capture and device.type != "cuda":
        raise OptionError(f"capture is True, but the device is {device}; accepted with CUDA alone")
    return capture  # type: ignore[return-value]


@contextmanager
def plain_torch() -> Iterator[None]:
    """Computing without gradients, in tensors that later calls may write to, whatever the caller has set.

    The caller's autocast, inference mode, default device, default dtype and reduced precision of float32
    products (TF32, bfloat16) don't hold inside: results are the same with and without them. Also a decorator.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_process_settings)
        yield


def _list_settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], tuple[Any, ...]]]:
    """What torch keeps for the whole process and results depend on: its getter, its setter, plain values."""
    matmul, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn
    found = [matmul, getattr(mkldnn, "matmul", None), getattr(mkldnn, "conv", None)]
    newer = [backend for backend in found if hasattr(backend, "fp32_precision")]
    settings: list[Any] = [(torch.get_default_dtype, torch.set_default_dtype, (torch.float32,))]
    for backend in newer:
        get, put = (partial(access, backend, "fp32_precision") for access in (getattr, setattr))
        settings.append((get, put, ("ieee", "none")))
    if not newer:
        get, put = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
        settings.append((get, put, ("highest",)))
    return settings


class _ProcessSettings:
    """Makes the settings of the whole process plain from the first thread's entry to the last one's exit,
    which sets what the caller had."""

    def __init__(self) -> None:
        self._lock, self._entered, self._settings = threading.Lock(), 0, _list_settings()
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._entered += 1
            for get, put, plain in self._settings:
                if (value := get()) not in plain:
                    self._undo.append(partial(put, value))
                    put(plain[0])

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._entered -= 1
            while self._undo and not self._entered:
                self._undo.pop()()


_process_settings = _ProcessSettings()


@contextmanager
def inference_on(device: torch.device, decoder: nn.Module | None = None) -> Iterator[None]:
    """`plain_torch`, with a GPU as the thread's current device, and as many threads as suit a decoder.

    Triton launches kernels on the thread's current device, wherever the tensors are.
    """
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    threads = None if decoder is None or device.type != "cpu" else suitable_threads(decoder)
    with plain_torch(), current, computing_threads(threads):
        yield


class _OnDevice(Protocol):
    model: Any

    @property
    def device(self) -> torch.device: ...


def inference(
    method: Callable[Concatenate[Pipeline, Arguments], Result],
) -> Callable[Concatenate[Pipeline, Arguments], Result]:
    """A pipeline's method, run in `inference_on` the pipeline's device."""

    @wraps(method)
    def run(pipeline: Pipeline, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with inference_on(pipeline.device, pipeline.model.decoder):
            return method(pipeline, *args, **kwargs)

    return run


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor in host memory on the device, without waiting for it.

    On CUDA it is copied from pinned memory, which torch does not reuse before the copy is done: a copy from
    pageable memory may still be reading when the tensor has been freed and overwritten.
    """
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


def ints_on_device(device: torch.device, *lists: Sequence[int]) -> list[Tensor]:
    """Lists of integers as int64 tensors on a device, transferred in one asynchronous copy."""
    # Each starts at a multiple of 16 bytes: Triton compiles a second kernel for unaligned pointers.
    padded = [[*numbers, *[0] * (len(numbers) % 2)] for numbers in lists]
    joined = torch.tensor(list(chain.from_iterable(padded)), dtype=torch.long)
    parts = upload(joined, device).split([len(numbers) for numbers in padded])
    return [part[: len(numbers)] for part, numbers in zip(parts, lists, strict=True)]


def zeros(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros `[*shape]`. On the CPU a large tensor takes memory only where it is written to, page by page."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _LARGE or sys.platform == "win32":
        return torch.zeros(*shape, device=device, dtype=dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)


def not_finite(what: str, dtype: torch.dtype) -> BifronsError:
    """The error for results that are NaN or infinite."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        cause = "activations overflow in float16, which ends at 65,504, or the weights are damaged"
        accepted = "dtype bfloat16, or float32"
    else:
        cause = f"the weights are damaged, or activations overflow in {name}"
        accepted = "whole weights" if dtype == torch.float32 else "whole weights; dtype float32 may help"
    return BifronsError(f"{what} are not numbers (NaN) or infinite: {cause}; accepted: {accepted}")


def check_finite(tensor: Tensor, what: str, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor. Raises a `BifronsError` if a number in it is NaN or infinite; `dtype` is that of the
    activations it was computed from, if another."""
    if not tensor.isfinite().all():
        raise not_finite(what, dtype or tensor.dtype)
    return tensor


def release_cached_memory(device: torch.device) -> None:
    """Give freed memory that torch keeps for later tensors back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work, before a time or a memory figure is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_bytes(device: torch.device) -> int:
    """Memory available for allocation on the device; for the CPU, on this machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def module_bytes(module: nn.Module) -> int:
    """Memory of a module's parameters and buffers."""
    return sum(tensor.numel() * tensor.itemsize for tensor in [*module.parameters(), *module.buffers()])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is that of a failed allocation, of which torch raises several kinds."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU's allocator and MPS raise a plain RuntimeError.
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
