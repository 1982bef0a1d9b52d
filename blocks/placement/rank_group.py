"""The ranks of a tensor-parallel model: one process each, of which the first is the caller's.

The first rank runs everything but the decoder's layers alone. For these it tells the others what it is about
to compute (`MainRank.tell`, in order, without waiting for an answer), and all compute their shares: inputs
come by a broadcast, each layer's two outputs are sums over the ranks, both within a captured step too. What
the others do is in `graphs/rank_process.py`.

B rows, T positions, D decoder width.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import AllreduceOptions, BroadcastOptions, ProcessGroupGloo, TCPStore

from ..model.kv_cache import MultiDeviceBuffer

HOST = "127.0.0.1"
_PATIENCE = timedelta(days=7)  # kernels may be compiled meanwhile; a process that ended is noticed at once
_CONNECT = timedelta(seconds=120)


def open_store(ranks: int, port: int | None = None) -> TCPStore:
    """Where the ranks meet: on a free port, or at the port of the first rank's."""
    first = port is None
    return TCPStore(HOST, port or 0, ranks, first, timeout=_CONNECT, wait_for_workers=False)


class RankGroup:
    """Exchanges of one rank with the others, through NCCL on GPUs and gloo on the CPU."""

    def __init__(self, rank: int, ranks: int, device: torch.device, meeting: TCPStore) -> None:
        self.rank, self.ranks, self.device = rank, ranks, device
        self._meeting = meeting  # lives as long as the exchanges
        if device.type == "cuda":
            from torch.distributed import ProcessGroupNCCL

            os.environ["NCCL_NVLS_ENABLE"] = "0"  # NVLink multicast stays off: sums there have another order
            nccl = ProcessGroupNCCL.Options()
            nccl._timeout = _PATIENCE
            self._backend: Any = ProcessGroupNCCL(meeting, rank, ranks, nccl)
        else:
            options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = [ProcessGroupGloo.create_device(hostname=HOST)]
            options._timeout = _PATIENCE
            self._backend = ProcessGroupGloo(meeting, rank, ranks, options)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, with the same bits on each, whatever the number of rows."""
        x = x.contiguous()
        if self.ranks == 2:  # the sum of two has one order
            options = AllreduceOptions()
            options.asyncOp = False
            _wait(self._backend.allreduce([x], options))
            return x
        parts = x.new_empty(self.ranks, *x.shape)  # of more, libraries sum in an order that the size decides
        self._gather(parts, x)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _gather(self, parts: Tensor, x: Tensor) -> None:
        if self.device.type == "cuda":
            _wait(self._backend._allgather_base(parts, x))
        else:
            _wait(self._backend.allgather([list(parts.unbind())], [x]))

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors, of equal shapes on all ranks, with those of the first rank: one broadcast.
        Those of 8 bytes a number come first."""
        sizes = [tensor.numel() * tensor.itemsize for tensor in tensors]
        if self.rank == 0:
            parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
            buffer = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        options = BroadcastOptions()
        options.rootRank, options.rootTensor, options.asyncOp = 0, 0, False
        _wait(self._backend.broadcast([buffer], options))
        if self.rank != 0:
            for tensor, part in zip(tensors, buffer.split(sizes), strict=True):
                tensor.copy_(part.view(tensor.dtype).view(tensor.shape))

    def runner(self) -> None:
        """See `MainRank.runner`: the others have none to tell anything."""

    def abort(self) -> None:
        """Give up what is being exchanged: kernels that wait for other ranks end."""
        abort = getattr(self._backend, "abort", None)
        if self.device.type == "cuda" and abort is not None:
            abort()


def _wait(work: Any) -> None:
    if work is not None:
        work.wait()


Ref = tuple[int, int, tuple[Any, ...]]
"""A part of a mirrored cache: the cache's number, the buffer's, and the indices that lead to the part."""


class MirroredBuffer(MultiDeviceBuffer):
    """A cache buffer `[L, B, S, H, K]` of the first rank: what is written to parts of it, the other ranks
    write to theirs. Layers are read as plain tensors, which hold what each rank computed."""

    def __init__(self, tensor: Tensor, ref: Ref, owner: Any) -> None:
        self.tensor, self.ref, self.owner = tensor, ref, owner

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int) or isinstance(index[0], int):
            return self.tensor[index]
        number, buffer, path = self.ref
        return MirroredBuffer(self.tensor[index], (number, buffer, (*path, index)), self.owner)

    def __setitem__(self, index: Any, value: Any) -> None:
        mirrored = isinstance(value, MirroredBuffer)
        self.owner.tell("write", self.ref, index, value.ref if mirrored else value)
        self.tensor[index] = value.tensor if mirrored else value

    def clone(self) -> "MirroredBuffer":
        return self.owner.clone(self)


def resolve(buffers: dict[int, tuple[Tensor, ...]], ref: Ref) -> Tensor:
    """The part of another rank's buffers that stands for this part of the first one's."""
    number, buffer, path = ref
    tensor = buffers[number][buffer]
    for index in path:
        tensor = tensor[index]
    return tensor
