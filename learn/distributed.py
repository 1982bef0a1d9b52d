"""Training on several processes, one a GPU: how they meet, share results, and hold a model in parts.

They are started by `processes.launch`, or by anything else that sets torchrun's variables (`torchrun`,
`accelerate launch`, schedulers of clusters).
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..blocks.device import resolve_device
from ..blocks.errors import OptionError
from ..blocks.model.moe import Gate
from .processes import LostConnectionError, ends_at_signals, is_launched

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in one exchange of training, before it gives up."""
PATIENCE = timedelta(days=7)
"""How long it waits while others encode pictures, paint, evaluate or write files."""
_LOST_CONNECTION = ("gloo", "Connection closed", "Connection reset", "NCCL", "Timed out", "Broken pipe")
_patient: Any = None
"""The group of all processes for exchanges that may take `PATIENCE`."""
T = TypeVar("T")


class OtherProcessError(Exception):
    """Another process failed, which says why itself."""


def rank() -> int:
    """This process's number among the run's, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: str | torch.device | None) -> Iterator[torch.device]:
    """Join the run's other processes, if it has any; gives the device of this one, on GPUs its own.

    Ctrl-C and SIGTERM end the process even while it waits for others. Raises `OptionError` where there are
    fewer GPUs than processes, and `LostConnectionError` once another process is gone.
    """
    global _patient
    if not is_launched():
        yield resolve_device(device)
        return
    chosen = _own_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    with ends_at_signals():
        dist.init_process_group(backend, timeout=TIMEOUT)
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        try:
            yield chosen
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST_CONNECTION):
                raise LostConnectionError(
                    f"process {rank()} of {world()} lost the connection to another one, which failed or was "
                    "killed (see its own message)"
                ) from error
            raise
        wait()
        _patient = None
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every process calls this."""
    if world() > 1:
        dist.barrier(_patient)


def exchange(value: T) -> list[T]:
    """The values of all processes, by their numbers; they are pickled."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value, _patient)
    return found


def agreed(work: Callable[[], T]) -> T:
    """What `work` gives on this process, once it has succeeded on all.

    Where it fails, the first process that failed raises its error, and the others `OtherProcessError`.
    """
    error, found = None, None
    try:
        found = work()
    except Exception as caught:
        error = caught
    failed = [number for number, has_failed in enumerate(exchange(error is not None)) if has_failed]
    if error is not None and failed[0] == rank():
        raise error
    if failed:
        raise OtherProcessError(f"process {failed[0]} failed")
    return found  # type: ignore[return-value]


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives on the first process, for all of them; the others wait. Errors are those of
    `agreed`."""
    found: list[Any] = [agreed(lambda: work() if rank() == 0 else None)]
    if world() > 1:
        dist.broadcast_object_list(found, 0, _patient)
    return found[0]


def _own_device(device: str | torch.device | None) -> torch.device:
    chosen = resolve_device(device)
    if chosen.type == "cpu":
        return chosen
    if chosen.type != "cuda" or chosen.index is not None:
        raise OptionError(f"device is {str(chosen)!r} for several processes; accepted: cuda, cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise OptionError(
            f"{torch.cuda.device_count()} GPUs for at least {local + 1} processes; accepted: one GPU for each"
        )
    return torch.device("cuda", local)


def sum_on_host(values: Tensor) -> Tensor:
    """The sums of a tensor on the CPU over all processes; a GPU is not waited for."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of parameters that every process holds whole, in one exchange."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world() == 1 or not grads or isinstance(grads[0], DTensor):
        return
    flat = _flatten_dense_tensors(grads)
    dist.all_reduce(flat)
    for grad, total in zip(grads, _unflatten_dense_tensors(flat, grads), strict=True):
        grad.copy_(total)


def shard(module: nn.Module, blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Divide a module's trained parameters among the processes (FSDP2, Zhao et al. 2023, arXiv 2304.11277).

    Parameters and gradients are float32; layers are computed in `dtype`. `blocks` are gathered one at a time,
    the rest as a whole. Gradients are summed, not averaged. Frozen parameters stay whole on every process.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise OptionError(
            f"torch is {torch.__version__}; accepted to train all weights in parts: 2.9 or newer"
        )
    if not dist.is_initialized():
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    device = next(module.parameters()).device
    mesh = dist.device_mesh.init_device_mesh(device.type, (world(),))
    mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    exact = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    for block in blocks:
        for part in block.modules():
            if isinstance(part, Gate):  # routers choose experts in float32
                fully_shard(part, mesh=mesh, mp_policy=exact, ignored_params=frozen)
        fully_shard(block, mesh=mesh, mp_policy=mixed, ignored_params=frozen)
    fully_shard(module, mesh=mesh, mp_policy=mixed, ignored_params=frozen)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


def whole(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Named tensors, those in parts gathered one at a time on the CPU of the first process; the other
    processes, which all call this, get empty ones."""
    for name, tensor in tensors:
        full: Any = tensor.detach()
        if isinstance(full, DTensor):
            full = full.full_tensor()
        yield name, full.cpu() if rank() == 0 else full.new_empty(0)


@contextmanager
def gathered(module: nn.Module, dtype: torch.dtype, everywhere: bool = False) -> Iterator[None]:
    """A module that was divided by `shard` is whole on the first process, in `dtype`, and computes as a plain
    one: to paint, evaluate or save it. With `everywhere` it is on all of them. Every process calls this; the
    others wait until the first is done."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.reshard()
    divided = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if isinstance(parameter, DTensor)
    ]
    hooks: list[Any] = [(part, part._forward_pre_hooks, part._forward_hooks) for part in parts]
    for owner, name, parameter in divided:
        own = parameter.dtype if isinstance(owner, Gate) else dtype
        full: Tensor = parameter.detach().to(own).full_tensor()  # type: ignore[attr-defined]
        whole_or_empty = full if everywhere or rank() == 0 else full.new_empty(0)
        owner._parameters[name] = nn.Parameter(whole_or_empty, requires_grad=False)
    for part, before, after in hooks:
        part._forward_pre_hooks, part._forward_hooks = type(before)(), type(after)()
    try:
        yield
    finally:
        for part, before, after in hooks:
            part._forward_pre_hooks, part._forward_hooks = before, after
        for owner, name, parameter in divided:
            owner._parameters[name] = parameter
    wait()
