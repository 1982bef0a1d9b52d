"""The report of `bifrons info` on a model folder, from its config and the headers of its weights files.

`inspect_model` makes a dictionary, which `--json` prints as it is; `report_lines` turns it into text.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch

from ...blocks.checkpoints.formats import TensorEntry
from ...blocks.checkpoints.hub import ModelFolder, open_model
from ...blocks.checkpoints.key_mapping import check
from ...blocks.checkpoints.quantize import (
    quantized_dtypes,
    quantized_key_map,
    replace_with_quantized,
    stored_kind,
)
from ...blocks.checkpoints.reader import list_tensors, weight_files
from ...blocks.errors import BifronsError, counted, one_line
from ...blocks.json_config import TABLE_BYTES, read_value
from ...blocks.kernels.codec import FP8_BLOCKS, KINDS
from ...blocks.placement.fp8_blocks import kind_in_memory
from ...blocks.placement.memory_budget import size_text
from ...blocks.placement.memory_estimate import active_parameters, model_bytes, parameters_by_part
from ...blocks.vocabulary import read_vocabulary
from ..descriptions import ModelDescription, describe
from ..pipelines import label
from .gpus import count_gpus, gpu_lines
from .remote import read_remote

BATCHES = (1, 4, 16)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MISMATCHES = ("missing", "extra", "misshapen", "twice")
"""Fields of a `MatchReport` that keep a model from loading."""
FORMATS = {
    **dict.fromkeys(("multi_modality", "deepseek_vl_v2", "deepseek_v2", "deepseek_v3"), "original"),
    **dict.fromkeys(("janus", "qwen2", "llama"), "transformers"),
}
"""The format of a folder by its `model_type`; `bifrons convert` changes that of Janus alone."""


def inspect_model(model: str) -> dict[str, Any]:
    """The whole report, with `sound`: whether the model would load.

    `errors` says why parts of it are missing. Raises `CheckpointError` only if there is no such folder.
    """
    source = open_model(model, weights=False)
    folder, remote = source.path, read_remote(source)
    report: dict[str, Any] = {"model": model, "folder": str(folder), "label": label(folder), "errors": []}
    local = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if os.path.isfile(path)}
    sizes = local if remote is None else remote.files
    report["files"] = [{"name": name, "bytes": size} for name, size in sorted(sizes.items())]
    description: ModelDescription | None = None
    entries: dict[str, TensorEntry] | None = None
    try:
        entries = list_tensors(folder) if remote is None else remote.entries
    except BifronsError as error:
        report["errors"].append(str(error))
    if remote is not None and entries is None:
        report["note"] = "The tensors of .bin files are compared with the model once they are downloaded."
    try:
        description = describe(source, entries or _indexed_names(folder))
        report |= _architecture(description, source)
    except BifronsError as error:
        report["errors"].insert(0, str(error))
    try:
        vocabulary = read_vocabulary(folder)
        report |= {} if vocabulary is None else {"vocabulary": vocabulary.content()}
    except BifronsError as error:
        report["errors"].append(str(error))
    if entries:
        report["format"] = _format(folder, description, entries)
    if description is not None and entries is not None:
        try:
            report["tensors"] = _match_tensors(description, entries, report.get("quantization"))
        except BifronsError as error:
            report["errors"].append(str(error))
    mismatches = report.get("tensors", {})
    report["sound"] = not report["errors"] and not any(mismatches.get(kind) for kind in MISMATCHES)
    return report


def _indexed_names(folder: Path) -> list[str]:
    """Names of the tensors of a folder whose weights are missing, as its index lists them."""
    path = folder / "model.safetensors.index.json"
    index = read_value(path, TABLE_BYTES) if os.path.isfile(path) else {}
    names = index.get("weight_map") if isinstance(index, dict) else None
    return list(names) if isinstance(names, dict) else []


def _match_tensors(
    description: ModelDescription, entries: dict[str, TensorEntry], quantization: str | None
) -> dict[str, Any]:
    """Compare the tensors in the files with the model's, which is quantized in place if they are."""
    network, key_map = description.network, description.key_map(entries)
    if quantization is not None:
        replace_with_quantized(network, quantization)
        key_map = quantized_key_map(key_map, quantized_dtypes(network))
    match = check(network, entries, key_map)
    mismatches = {kind: list(getattr(match, kind)) for kind in MISMATCHES}
    return {"in_files": len(entries), **mismatches, "unused": len(match.unused)}


def _architecture(description: ModelDescription, source: ModelFolder) -> dict[str, Any]:
    """What follows from the config alone: name, parameters, memory."""
    quantization = stored_kind(source)
    kinds = {kind: kind_in_memory(source, kind) for kind in KINDS} if quantization is None else {}
    loaded = {"bfloat16": None, **kinds} if quantization is None else {quantization: quantization}
    parts = parameters_by_part(description.network, description.parts)
    total = sum(parts.values())
    experts = parts.get(description.experts, 0) if description.experts else 0

    def weight_bytes(kind: str | None) -> dict[str, int]:
        return {
            name: model_bytes(description.network, dtype, kind, description.keep_float32)
            for name, dtype in DTYPES.items()
        }

    work = description.workloads[-1]
    beside = work.cache_bytes(1, torch.bfloat16) + work.activation_bytes(1, torch.bfloat16)
    return {
        "quantization": quantization,
        "stored_in_fp8_blocks": FP8_BLOCKS in kinds.values(),
        "family": description.family,
        "variant": description.variant,
        "model_type": description.model_type,
        "context": description.decoder.max_positions,
        "parameters": {
            "total": total,
            "active_per_token": active_parameters(description.decoder, total, experts),
            "parts": parts,
        },
        "memory": {
            "weights": weight_bytes(quantization),
            "quantized": {name: weight_bytes(kind) for name, kind in kinds.items()},
            "work": [
                {
                    "work": workload.name,
                    "batch": batch,
                    "rows": batch * workload.rows,
                    "positions": workload.positions,
                    "cache": {name: workload.cache_bytes(batch, dtype) for name, dtype in DTYPES.items()},
                    "activations": {
                        name: workload.activation_bytes(batch, dtype) for name, dtype in DTYPES.items()
                    },
                }
                for workload in description.workloads
                for batch in BATCHES
            ],
            "gpus": count_gpus(description.network, beside, loaded, description.keep_float32),
        },
    }


def _format(
    folder: Path, description: ModelDescription | None, entries: dict[str, TensorEntry]
) -> dict[str, Any]:
    used = {entry.file.name for entry in entries.values()}
    dtypes = Counter(str(entry.dtype).removeprefix("torch.") for entry in entries.values())
    return {
        "layout": FORMATS[description.model_type] if description else None,
        "weights": sorted(used),
        "dtypes": dict(dtypes.most_common()),
        "numbers": sum(entry.nbytes // entry.dtype.itemsize for entry in entries.values()),
        "other_weights": [
            path.name
            for path in weight_files(folder)
            if path.name not in used and not path.name.endswith(".index.json")
        ],
    }


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as lines of text; problems come last, where they are easily seen."""
    yield _headline(report)
    if report["label"]:
        yield report["label"]
    if "vocabulary" in report:
        yield from _vocabulary_lines(report["vocabulary"])
    if "parameters" in report:
        yield from _parameter_lines(report["parameters"])
    yield f"\nFiles in {report['folder']}"
    names = [one_line(file["name"]) for file in report["files"]]
    width = max(map(len, names), default=0)
    sizes = [size_text(file["bytes"]) for file in report["files"]]
    yield from (f"  {name:<{width}}  {size:>8}" for name, size in zip(names, sizes, strict=True))
    if "memory" in report:
        yield from _memory_lines(report)
    if "tensors" in report:
        yield from _tensor_lines(report["tensors"])
    if "note" in report:
        yield f"\n{report['note']}"
    for error in report["errors"]:
        yield f"\nProblem: {error}"
    if not report["sound"]:
        yield "\nThis model would not load."


def _headline(report: dict[str, Any]) -> str:
    parts = [f"{report['model']}:"]
    if "family" in report:
        parts.append(report["variant"] or f"a {report['family']} model of no released size")
        parts.append(f"({report['family']}, model_type {report['model_type']})")
    else:
        parts.append("of unknown kind")
    if stored := report.get("format"):
        files = stored["weights"]
        layout = f"{stored['layout']} format, " if stored["layout"] else ""
        kind = files[0].rpartition(".")[2]
        dtypes = ", ".join(stored["dtypes"])
        parts[-1] += f", {layout}{counted(len(files), f'.{kind} file')}, {dtypes}"
    return " ".join(parts)


def _vocabulary_lines(vocabulary: dict[str, Any]) -> Iterator[str]:
    yield "\nVocabulary (it was trained on these words alone)"
    for kind in ("shapes", "things", "colors"):
        if names := vocabulary.get(kind):
            line = f"{f'{len(names)} {kind}':<10} {', '.join(names)}"
            yield from wrap(line, 100, initial_indent="  ", subsequent_indent="    ")
    yield f"  up to {vocabulary['most_things']} at once"
    for work in ("painting", "reading"):
        if work in vocabulary:
            words = f"{work}: {' '.join(vocabulary[work])}"
            yield from wrap(words, 100, initial_indent="  ", subsequent_indent="    ")
    spellings = vocabulary["spellings"].items()
    yield f"  read as others: {', '.join(f'{word} as {known}' for word, known in spellings)}"


def _parameter_lines(parameters: dict[str, Any]) -> Iterator[str]:
    total, active = parameters["total"], parameters["active_per_token"]
    per_token = f", {_count(active)} of them active per token" if active != total else ""
    yield f"\nParameters: {_count(total)}{per_token}"
    width = max(map(len, parameters["parts"]), default=0)
    for part, count in parameters["parts"].items():
        yield f"  {part:<{width}} {_count(count):>8}  {count / total:6.1%}"


def _memory_lines(report: dict[str, Any]) -> Iterator[str]:
    weights = report["memory"]["weights"]
    yield f"\nMemory needed (context {report['context']:,} positions)"
    yield f"  {'':<40}{'float32':>20}{'bfloat16, float16':>20}"
    yield f"  {'weights':<40}{size_text(weights['float32']):>20}{size_text(weights['bfloat16']):>20}"
    for kind, sizes in report["memory"]["quantized"].items():
        columns = f"{size_text(sizes['float32']):>20}{size_text(sizes['bfloat16']):>20}"
        stored = " (as stored)" if kind == "fp8" and report["stored_in_fp8_blocks"] else ""
        yield f"  {f'weights with --quantize {kind}{stored}':<40}{columns}"
    yield "  beside the weights: cache + activations (approximate)"
    for work in report["memory"]["work"]:
        name = f"{work['work']}, {work['positions']} positions" if work["batch"] == BATCHES[0] else ""
        columns = [
            f"{size_text(work['cache'][dtype])} + {size_text(work['activations'][dtype])}"
            for dtype in ("float32", "bfloat16")
        ]
        if name:
            yield f"    {name}"
        yield f"      {'batch of ' + str(work['batch']):<36}" + "".join(f"{column:>20}" for column in columns)
    yield from gpu_lines(report["memory"]["gpus"])


def _tensor_lines(tensors: dict[str, Any]) -> Iterator[str]:
    all_match = not any(tensors[kind] for kind in MISMATCHES)
    unused = f"{tensors['unused']} of them known but not needed"
    yield f"\nTensors: {tensors['in_files']} in the files, {unused}" + ("; all match" if all_match else "")
    titles = {
        "missing": "missing from the files",
        "extra": "unknown to this model",
        "misshapen": "of the wrong shape or dtype",
        "twice": "stored twice",
    }
    for kind in MISMATCHES:
        if tensors[kind]:
            yield f"  {len(tensors[kind])} {titles[kind]}:"
            yield from (f"    {name}" for name in tensors[kind])


def _count(number: int) -> str:
    """A number of parameters as text, such as `2.08 B`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return str(number)
