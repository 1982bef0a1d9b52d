"""Clocks, memory and the limit that a benchmark is held against.

The limit of a decoding step is the time to read once what it must read: the weights that it goes through and
the filled part of the cache, over the bandwidth that a plain copy (CUDA) or sum (CPU) of a large buffer
reaches on the same device just before.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ...blocks.device import module_bytes, synchronize
from ...blocks.model.decoder import Decoder
from ...blocks.model.kv_cache import KVCache, allocated_slots
from ...blocks.model.moe import Experts

_BUFFER = 1 << 29  # bytes: beyond any cache of a processor


@dataclass(frozen=True)
class Line:
    """One figure. `seconds` is the median of `repeats` runs, `best` the least; `rate` counts `unit` a second.
    `limit` is in seconds, None where memory is not what bounds the work. `peak` counts bytes."""

    who: str
    work: str
    seconds: float
    best: float
    repeats: int
    rate: float
    unit: str
    limit: float | None
    peak: int
    note: str = ""
    ratio: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.limit is not None:
            object.__setattr__(self, "ratio", self.seconds / self.limit)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Bench:
    """Measures work on one device and keeps its lines."""

    def __init__(self, device: torch.device, told: Callable[[Line], object]) -> None:
        self.device, self._told = device, told
        self.lines: list[Line] = []

    def measure(
        self,
        who: str,
        work: str,
        run: Callable[[], object],
        *,
        repeats: int,
        warmup: int = 1,
        items: int = 1,
        per: int = 1,
        unit: str = "/s",
        limit: float | None = None,
        note: str = "",
    ) -> Line:
        """Times `run`, which does `per` steps of `items` items each; figures are for one step."""
        times = [seconds / per for seconds in self.time(run, repeats=repeats, warmup=warmup)]
        return self.add(who, work, times, items=items, unit=unit, limit=limit, note=note)

    def time(self, run: Callable[[], object], *, repeats: int, warmup: int = 1) -> list[float]:
        """Seconds of each run; the memory's peak is that of these runs."""
        for _ in range(warmup):
            run()
        reset_peak(self.device)
        times = []
        for _ in range(repeats):
            synchronize(self.device)
            start = time.perf_counter()
            run()
            synchronize(self.device)
            times.append(time.perf_counter() - start)
        return times

    def add(
        self,
        who: str,
        work: str,
        times: list[float],
        *,
        items: int,
        unit: str,
        limit: float | None,
        note: str,
    ) -> Line:
        """A line of steps that took `times`."""
        middle = statistics.median(times)
        line = Line(
            who, work, middle, min(times), len(times), items / middle, unit, limit, peak(self.device), note
        )
        self.lines.append(line)
        self._told(line)
        return line


def bandwidth(device: torch.device) -> float:
    """Bytes a second: read by a sum on the CPU, read and written by a copy elsewhere; the best of several."""
    x = torch.ones(_BUFFER // 4, device=device)
    y = torch.empty_like(x) if device.type != "cpu" else x
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        if device.type == "cpu":
            x.sum()
        else:
            y.copy_(x)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return _BUFFER * (1 if device.type == "cpu" else 2) / best


def step_bytes(decoder: Decoder, heads: list[torch.nn.Module], rows: int, slots: float) -> float:
    """Bytes that one position of each row must read with so many filled slots. Of routed experts those that
    are chosen, as many as are expected to differ if rows choose alike often and on their own."""
    total = float(sum(module_bytes(module) for module in [*decoder.layers, decoder.norm, *heads]))
    config = decoder.config
    if config.moe is not None:
        idle = (1 - config.moe.top_k / config.moe.num_experts) ** rows
        for module in decoder.modules():
            if isinstance(module, Experts):
                total -= idle * module_bytes(module)
    dtype = decoder.embed_tokens.weight.dtype
    span = KVCache.row_bytes(1, config.num_layers, config.cache_widths, dtype)
    return total + rows * slots * span / allocated_slots(1)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):  # not on every platform: then the peak is the process's so far
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes: of this device's allocations, or on the CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on, and when."""
    kind = platform.processor() or platform.machine()
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    elif (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        kind = names[0].partition(":")[2].strip() if names else kind
    found: dict[str, Any] = {
        "kind": kind,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if hasattr(os, "getloadavg"):
        found |= {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    return found
