"""`bifrons info`: all that can be said about a model folder from its config and the headers of its files.

`inspect_model` gathers it in one dictionary, which is what `--json` prints; `report_lines` is the same for
people.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...blocks.checkpoints.formats import TensorEntry
from ...blocks.checkpoints.hub import open_model
from ...blocks.checkpoints.key_mapping import KeyMap, check
from ...blocks.checkpoints.quantize import (
    model_bytes,
    quantized_dtypes,
    quantized_key_map,
    replace_with_quantized,
    stored_kind,
)
from ...blocks.checkpoints.reader import list_tensors, weight_files
from ...blocks.errors import BifronsError
from ...blocks.kernels.codec import KINDS
from ...blocks.placement.memory_budget import size_text
from ...blocks.placement.memory_estimate import active_parameters, parameters_by_part
from ..pipelines import Described, describe, label

BATCHES = (1, 4, 16)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TROUBLES = ("missing", "extra", "misshapen", "twice")
_FORMATS = {"multi_modality": "original", "deepseek_vl_v2": "original", "janus": "transformers"}


def inspect_model(model: str) -> dict[str, Any]:
    """The whole report. `errors` holds what kept a part of it from being made; `sound` is whether the model
    would load. A `CheckpointError` only where there is no such folder."""
    source = open_model(model)
    folder = source.path
    found: dict[str, Any] = {"model": model, "folder": str(folder), "label": label(folder), "errors": []}
    found["files"] = [
        {"name": path.name, "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    described: Described | None = None
    entries: dict[str, TensorEntry] | None = None
    try:
        described = describe(source)
        kind = stored_kind(source)
        found |= _architecture(described, kind)
    except BifronsError as error:
        found["errors"].append(str(error))
    try:
        entries = list_tensors(folder)
        found["format"] = _format(folder, described, entries)
    except BifronsError as error:
        found["errors"].append(str(error))
    if described is not None and entries is not None:
        try:
            report = check(*_stored(described, entries, found.get("quantization")))
            tensors = {kind: list(getattr(report, kind)) for kind in TROUBLES}
            found["tensors"] = {"in_files": len(entries), **tensors, "unused": len(report.unused)}
        except BifronsError as error:
            found["errors"].append(str(error))
    found["sound"] = not found["errors"] and not any(found["tensors"][kind] for kind in TROUBLES)
    return found


def _stored(
    described: Described, entries: dict[str, TensorEntry], kind: str | None
) -> tuple[torch.nn.Module, dict[str, TensorEntry], KeyMap]:
    """What `check` compares; the network turns into what a quantized folder fills."""
    key_map = described.key_map(entries)
    if kind is not None:
        replace_with_quantized(described.network, kind)
        key_map = quantized_key_map(key_map, quantized_dtypes(described.network))
    return described.network, entries, key_map


def _architecture(described: Described, kind: str | None) -> dict[str, Any]:
    """What the config alone says: name, parameters, memory."""
    parts = parameters_by_part(described.network, described.parts)
    total = sum(parts.values())
    experts = parts.get(described.experts, 0) if described.experts else 0

    def weights(kind: str | None) -> dict[str, int]:
        sizes = DTYPES.items()
        return {n: model_bytes(described.network, dtype, kind, described.keep_float32) for n, dtype in sizes}

    return {
        "quantization": kind,
        "family": described.family,
        "variant": described.variant,
        "model_type": described.model_type,
        "context": described.decoder.max_positions,
        "parameters": {
            "total": total,
            "active_per_token": active_parameters(described.decoder, total, experts),
            "parts": parts,
        },
        "memory": {
            "weights": weights(kind),
            "quantized": {other: weights(other) for other in KINDS} if kind is None else {},
            "work": [
                {
                    "work": work.name,
                    "batch": batch,
                    "rows": batch * work.rows,
                    "positions": work.positions,
                    "cache": {name: work.cache_bytes(batch, dtype) for name, dtype in DTYPES.items()},
                    "activations": {
                        name: work.activation_bytes(batch, dtype) for name, dtype in DTYPES.items()
                    },
                }
                for work in described.workloads
                for batch in BATCHES
            ],
        },
    }


def _format(folder: Path, described: Described | None, entries: dict[str, TensorEntry]) -> dict[str, Any]:
    used = {entry.file.name for entry in entries.values()}
    dtypes = Counter(str(entry.dtype).removeprefix("torch.") for entry in entries.values())
    return {
        "layout": _FORMATS[described.model_type] if described else None,
        "weights": sorted(used),
        "dtypes": dict(dtypes.most_common()),
        "numbers": sum(entry.nbytes // entry.dtype.itemsize for entry in entries.values()),
        "other_weights": [
            path.name
            for path in weight_files(folder)
            if path.name not in used and not path.name.endswith(".index.json")
        ],
    }


def report_lines(found: dict[str, Any]) -> Iterator[str]:
    """The report for people; trouble comes last, where it is seen."""
    yield _headline(found)
    if found["label"]:
        yield found["label"]
    if "parameters" in found:
        yield from _parameter_lines(found["parameters"])
    yield f"\nFiles in {found['folder']}"
    width = max([len(file["name"]) for file in found["files"]], default=0)
    yield from (f"  {file['name']:<{width}}  {size_text(file['bytes']):>8}" for file in found["files"])
    if "memory" in found:
        yield from _memory_lines(found)
    if "tensors" in found:
        yield from _tensor_lines(found["tensors"])
    for error in found["errors"]:
        yield f"\nProblem: {error}"
    if not found["sound"]:
        yield "\nThis model would not load."


def _headline(found: dict[str, Any]) -> str:
    words = [f"{found['model']}:"]
    if "family" in found:
        words.append(found["variant"] or f"a {found['family']} model of no released size")
        words.append(f"({found['family']}, model_type {found['model_type']})")
    else:
        words.append("of unknown kind")
    if form := found.get("format"):
        files = form["weights"]
        layout = f"{form['layout']} format, " if form["layout"] else ""
        kind = files[0].rpartition(".")[2]
        dtypes = ", ".join(form["dtypes"])
        words[-1] += f", {layout}{len(files)} .{kind} file{'s' if len(files) > 1 else ''}, {dtypes}"
    return " ".join(words)


def _parameter_lines(parameters: dict[str, Any]) -> Iterator[str]:
    total, active = parameters["total"], parameters["active_per_token"]
    activity = f", of which a token goes through {_count(active)}" if active != total else ""
    yield f"\nParameters: {_count(total)}{activity}"
    for part, count in parameters["parts"].items():
        yield f"  {part:<26} {_count(count):>8}  {count / total:6.1%}"


def _memory_lines(found: dict[str, Any]) -> Iterator[str]:
    weights = found["memory"]["weights"]
    yield f"\nMemory needed (context {found['context']:,} positions)"
    yield f"  {'':<40}{'float32':>20}{'bfloat16, float16':>20}"
    yield f"  {'weights':<40}{size_text(weights['float32']):>20}{size_text(weights['bfloat16']):>20}"
    for kind, sizes in found["memory"]["quantized"].items():
        columns = f"{size_text(sizes['float32']):>20}{size_text(sizes['bfloat16']):>20}"
        yield f"  {f'weights with --quantize {kind}':<40}{columns}"
    yield "  and beside them: cache + activations (roughly)"
    for work in found["memory"]["work"]:
        name = f"{work['work']}, {work['positions']} positions" if work["batch"] == BATCHES[0] else ""
        columns = [
            f"{size_text(work['cache'][dtype])} + {size_text(work['activations'][dtype])}"
            for dtype in ("float32", "bfloat16")
        ]
        if name:
            yield f"    {name}"
        yield f"      {'batch of ' + str(work['batch']):<36}" + "".join(f"{column:>20}" for column in columns)


def _tensor_lines(tensors: dict[str, Any]) -> Iterator[str]:
    fitting = not any(tensors[kind] for kind in TROUBLES)
    unused = f"{tensors['unused']} of them known and not needed"
    yield f"\nTensors: {tensors['in_files']} in the files, {unused}" + ("; all fit" if fitting else "")
    titles = {
        "missing": "missing from the files",
        "extra": "unknown to this model",
        "misshapen": "of the wrong shape or kind",
        "twice": "there twice",
    }
    for kind in TROUBLES:
        if tensors[kind]:
            yield f"  {len(tensors[kind])} {titles[kind]}:"
            yield from (f"    {name}" for name in tensors[kind])


def _count(number: int) -> str:
    """A number of parameters for people: `2.08 B`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return str(number)
