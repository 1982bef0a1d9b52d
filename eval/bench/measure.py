"""Timing, peak memory, and the limit that a benchmark is compared with.

The limit of a decoding step is the time to read once what it must read: the weights it uses and the filled
part of the kv cache, divided by the bandwidth that a plain copy (CUDA) or sum (CPU) of a large buffer
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

_BUFFER = 1 << 29  # bytes, larger than any processor's cache


@dataclass(frozen=True)
class Line:
    """One figure.

    `seconds` is the median of `repeats` runs, `best` the minimum; `rate` is in `unit` (items per second).
    `limit` is in seconds, None where memory bandwidth does not bound the work; `ratio` is `seconds / limit`.
    `peak` is in bytes.
    """

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
        """The fields as a dictionary."""
        return asdict(self)


class Bench:
    """Measures work on one device and collects the lines."""

    def __init__(self, device: torch.device, on_line: Callable[[Line], object]) -> None:
        self.device, self._on_line, self.form = device, on_line, ""
        """`form` is added to who is measured."""
        self.beside: dict[str, float] = {}
        """Seconds of the same works in another form, which notes then name."""
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
        """Time `run`, which does `per` steps of `items` items each; the figures are for one step."""
        times = [seconds / per for seconds in self.time(run, repeats=repeats, warmup=warmup)]
        return self.add(who, work, times, items=items, unit=unit, limit=limit, note=note)

    def time(self, run: Callable[[], object], *, repeats: int, warmup: int = 1) -> list[float]:
        """Seconds of each run after the warm-up; the peak of memory is reset before them."""
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
        """Add a line for steps that took `times` seconds each."""
        middle = statistics.median(times)
        if (other := self.beside.get(work)) is not None:
            note = f"x {middle / other:.3f} of {duration_text(other)} in one process; {note}".rstrip("; ")
        line = Line(
            who + self.form,
            work,
            middle,
            min(times),
            len(times),
            items / middle,
            unit,
            limit,
            peak(self.device),
            note,
        )
        self.lines.append(line)
        self._on_line(line)
        return line


def duration_text(seconds: float) -> str:
    """A duration as text, such as `12.3 ms`."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def bandwidth(device: torch.device) -> float:
    """Bytes per second, the best of 8 tries: read by a sum on the CPU, read and written by a copy
    elsewhere."""
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
    """Bytes that a step of `rows` rows must read when each has `slots` filled cache slots.

    Of routed experts it counts the expected number of distinct ones, if every row chose uniformly and
    independently.
    """
    total = float(sum(module_bytes(module) for module in [*decoder.layers, decoder.norm, *heads]))
    config = decoder.config
    if config.moe is not None:
        unused = (1 - config.moe.top_k / config.moe.num_experts) ** rows
        for module in decoder.modules():
            if isinstance(module, Experts):
                total -= unused * module_bytes(module)
    dtype = decoder.embed_tokens.weight.dtype
    span = KVCache.row_bytes(1, config.num_layers, config.cache_widths, dtype)
    return total + rows * slots * span / allocated_slots(1)


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak of memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):  # not on every platform; the peak is then that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Peak memory in bytes: of the device's allocations, or on the CPU of the whole process."""
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
    """The machine the figures were measured on, and the date."""
    kind = platform.processor() or platform.machine()
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    elif (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        kind = names[0].partition(":")[2].strip() if names else kind
    description: dict[str, Any] = {
        "kind": kind,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if hasattr(os, "getloadavg"):
        description |= {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    return description
