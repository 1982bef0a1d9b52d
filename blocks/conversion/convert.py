"""Converts a model folder to sharded safetensors in the original format.

One tensor, or one parameter with its pieces, is in memory at a time.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..checkpoints.formats import TensorEntry
from ..checkpoints.quantize import CONFIG_KEY
from ..checkpoints.reader import TensorReader, list_tensors, weight_files
from ..errors import CheckpointError
from ..files import temporary_path
from ..foreign_files import check_config, has_fp8_blocks, model_type_error
from ..json_config import read_section
from ..progress import byte_bar
from .merge import Merge
from .quantized_writer import QuantizedWriter, stored_in_int8, unchanged_specs
from .writer import TensorSpec, spec_bytes, write_safetensors

Translation = Callable[
    [Path, dict[str, TensorEntry], TensorReader], tuple[list[TensorSpec], dict[str, dict[str, Any]]]
]
"""Maps a folder in another format to its tensors and JSON files in the original one."""

_TEXT_SUFFIXES = {".json", ".md", ".txt", ".model", ".jinja"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)


def convert_folder(
    src: Path | str,
    dst: Path | str,
    formats: Mapping[str, Translation | None],
    *,
    progress: bool | None = None,
    max_shard_bytes: int = 5_000_000_000,
    writer: QuantizedWriter | None = None,
    merge: Merge = list,
    more_files: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    force: bool = False,
    store_int8: bool = False,
) -> Path:
    """Write the model folder `src` to the new folder `dst` in the original format; returns `dst`.

    `formats` maps the accepted `model_type`s of `config.json` to their translations, or to None for the
    original format, whose tensors are all kept bit for bit, unused ones included. `writer` quantizes while
    writing, and has a `merge` of its own; else `merge` changes the weights. `more_files` are JSON
    files to write in place of those of `src`. `store_int8` writes large weights by `stored_in_int8`. `dst`
    appears only once it is complete; with `force` it then replaces a model's folder of that name. Raises
    `CheckpointError` if `src` is damaged or does not match its config, or if `dst` is not empty, lies inside
    `src` or can't be written; `ConfigError` for another `model_type`.
    """
    src, dst = _checked_folders(Path(src), dst, force)
    section = read_section(src / "config.json")
    check_config(section)
    config, model_type = section.values, section.get("model_type")
    if not isinstance(model_type, str) or model_type not in formats:
        raise model_type_error(section, formats)
    translate, entries = formats[model_type], list_tensors(src)
    with TensorReader() as reader:
        if translate is None:
            specs, files = _unchanged(entries, reader), {}
            if has_fp8_blocks(section):
                files["config.json"] = {key: value for key, value in config.items() if key != CONFIG_KEY}
        else:
            specs, files = translate(src, entries, reader)
        if writer is not None:
            specs = writer.specs(src, entries, reader)
            files["config.json"] = writer.config(files.get("config.json") or config)
        else:
            specs = merge(specs)
        specs = list(stored_in_int8(specs)) if store_int8 else specs
        copied = copied_files(src, original=translate is None)
        options = {"max_shard_bytes": max_shard_bytes, "progress": progress, "force": force}
        return write_model(dst, specs, {**files, **more_files}, copied, **options)


def write_model(
    dst: Path,
    specs: list[TensorSpec],
    files: Mapping[str, dict[str, Any]],
    copied: Iterable[Path],
    *,
    max_shard_bytes: int,
    progress: bool | None,
    force: bool = False,
) -> Path:
    """Write a model folder, which appears once it is complete: tensors, JSON files, copies of other files.

    `force` replaces a folder that `new_folder` has accepted. Raises `CheckpointError` if it can't be written.
    """
    try:
        with temporary_path(dst) as part:
            part.mkdir(parents=True)
            with byte_bar(sum(map(spec_bytes, specs)), f"writing {dst.name}", progress) as bar:
                write_safetensors(part, specs, max_shard_bytes, on_bytes=bar.update)
            for path in copied:
                shutil.copyfile(path, part / path.name)
            for name, content in files.items():
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                (part / name).write_text(text, encoding="utf-8")
            _put(part, dst, force)
    except OSError as error:
        raise CheckpointError(f"can't write {dst}: {error.strerror or error}") from error
    return dst


def _put(new: Path, dst: Path, force: bool) -> None:
    """Rename a folder to `dst`; what is there is removed afterwards, if it is empty or `force`d."""
    if not os.path.exists(dst):
        new.rename(dst)
        return
    if not force:
        dst.rmdir()
        new.rename(dst)
        return
    with temporary_path(dst.with_name(f"{dst.name}.old")) as old:
        dst.rename(old)
        try:
            new.rename(dst)
        except OSError:
            old.rename(dst)
            raise


def _checked_folders(src: Path, target: Path | str, force: bool) -> tuple[Path, Path]:
    if not os.path.isdir(src):
        raise CheckpointError(f"{src} is not a folder; a model folder is needed")
    dst = _real_path(target)
    if Path(os.path.realpath(src)) in (dst, *dst.parents):
        raise CheckpointError(f"{dst} is inside {src} or the same; choose a new folder beside it")
    return src, new_folder(dst, force)


def _real_path(target: str | os.PathLike[str]) -> Path:
    try:
        return Path(os.path.realpath(os.path.expanduser(target)))
    except ValueError as error:  # a NUL byte
        raise CheckpointError(f"{target!r} can be no folder's name: {error}") from error


def new_folder(target: str | os.PathLike[str], force: bool = False) -> Path:
    """The path of a folder to write, which must be new or empty, or with `force` a model's: a config.json
    and other files, but no folders. Raises `CheckpointError`."""
    dst = _real_path(target)
    if not os.path.exists(dst) or (os.path.isdir(dst) and not any(dst.iterdir())):
        return dst
    if not force:
        raise CheckpointError(f"{dst} exists and is not an empty folder; choose a new one")
    files = [path for path in dst.iterdir() if os.path.isfile(path)] if os.path.isdir(dst) else []
    if dst / "config.json" not in files or len(files) < len(list(dst.iterdir())):
        raise CheckpointError(
            f"{dst} is not replaced: it is no folder of a model, or holds other folders; remove it yourself"
        )
    return dst


def copied_files(src: Path, original: bool) -> list[Path]:
    """The files to copy: all text files, or only the tokenizer's if the format changes."""
    if not original:
        return [src / name for name in _TOKENIZER_FILES if os.path.isfile(src / name)]
    weights = weight_files(src)
    return [
        path
        for path in sorted(src.iterdir())
        if os.path.isfile(path)
        and path not in weights
        and (path.suffix in _TEXT_SUFFIXES or path.name.startswith(("LICENSE", "NOTICE")))
    ]


def _unchanged(entries: dict[str, TensorEntry], reader: TensorReader) -> list[TensorSpec]:
    ordered = sorted(entries.values(), key=lambda e: (str(e.file), e.offset))
    return unchanged_specs(ordered, reader)
