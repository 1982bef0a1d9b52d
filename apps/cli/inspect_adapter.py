"""The report of `bifrons info` on an adapter's folder, from its settings and the header of its weights."""

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from ...blocks.checkpoints.hub import open_model
from ...blocks.checkpoints.reader import list_tensors
from ...blocks.conversion.adapter import AdapterFiles, open_adapter, read_adapter
from ...blocks.errors import BifronsError, counted, one_line
from ...blocks.placement.memory_budget import size_text
from ..descriptions import describe


def inspect_adapter(folder: Path) -> dict[str, Any]:
    """The whole report, with `sound`: whether the adapter could be loaded into the model that it names.

    `model_found` says whether that model is on this machine; if not, only the files are checked.
    """
    report: dict[str, Any] = {"adapter": str(folder), "kind": "LoRA", "errors": []}
    try:
        files = open_adapter(folder)
        report |= _contents(files)
        report["model_found"] = _check(files)
    except BifronsError as error:
        report["errors"].append(str(error))
    return {**report, "sound": not report["errors"]}


def _contents(files: AdapterFiles) -> dict[str, Any]:
    entries = files.entries.values()
    return {
        "base": files.base or None,
        "rank": files.config.integer("r", 8),
        "alpha": files.config.number("lora_alpha", 8),
        "modules": dict(Counter(name.rpartition(".")[2] for name in files.modules)),
        "whole": sorted(files.whole),
        "parameters": sum(prod(entry.shape) for entry in entries),
        "bytes": sum(path.stat().st_size for path in {entry.file for entry in entries}),
        "dtypes": dict(Counter(str(entry.dtype).removeprefix("torch.") for entry in entries)),
        "fingerprint": files.fingerprint,
    }


def _check(files: AdapterFiles) -> bool:
    """Whether its model is on this machine. Raises `BifronsError` if it is and the adapter doesn't fit."""
    if not files.base or files.base.startswith(("//", "\\\\")):  # no share of another machine
        return False
    try:
        source = open_model(files.base, local_files_only=True)
        description = describe(source, list_tensors(source.path))
    except BifronsError:
        return False
    shapes = {name: tuple(tensor.shape) for name, tensor in description.network.named_parameters()}
    read_adapter(files.folder, description.adapter_key_maps, shapes)
    return True


def adapter_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines of text."""
    yield f"{one_line(report['adapter'])}: a LoRA adapter"
    if "modules" in report:
        base = one_line(report["base"] or "not stated")
        found = {True: "; it fits that model", False: "; that model is not on this machine"}
        yield f"  model      {base}{'' if report['sound'] is False else found[report['model_found']]}"
        yield f"  rank       {report['rank']}, alpha {report['alpha']:g}"
        modules = ", ".join(f"{one_line(name)} {count}" for name, count in report["modules"].items())
        yield f"  changes    {counted(sum(report['modules'].values()), 'module')}: {modules}"
        if report["whole"]:
            yield f"  replaces   {', '.join(map(one_line, report['whole']))}"
        size, dtypes = size_text(report["bytes"]), ", ".join(report["dtypes"])
        yield f"  size       {report['parameters']:,} parameters, {size}, {dtypes}"
        yield f"  fingerprint {report['fingerprint']}"
    for error in report["errors"]:
        yield f"Problem: {error}"
    if not report["sound"]:
        yield "This adapter would not load."
