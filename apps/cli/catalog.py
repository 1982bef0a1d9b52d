"""`bifrons models`: the models on this machine."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...blocks.checkpoints.hub import EMBEDDED, EMBEDDED_FOLDER, ModelFolder
from ...blocks.errors import BifronsError, printable
from ...blocks.hub_download import cache_folder
from ...blocks.placement.memory_budget import size_text
from ..files import print_json
from ..pipelines import family_of


def models(args: argparse.Namespace) -> int:
    """List the embedded models and those of these families in the hub's cache, with their sizes on disk."""
    found = [*_embedded(), *_cached()]
    if args.json:
        print_json({"models": found})
        return 0
    width = max((len(one["model"]) for one in found), default=0)
    for one in found:
        where = "embedded" if one["embedded"] else one["folder"]
        text = f"{one['model']:<{width}}  {one['family']:<12}  {size_text(one['bytes']):>8}  {where}"
        print(printable(text))
    return 0


def _embedded() -> Iterator[dict[str, Any]]:
    for name, family in EMBEDDED.items():
        if os.path.isdir(folder := EMBEDDED_FOLDER / name):
            size = sum(path.stat().st_size for path in folder.iterdir())
            yield {"model": name, "family": family, "bytes": size, "folder": str(folder), "embedded": True}


def _cached() -> Iterator[dict[str, Any]]:
    """The repositories in the hub's cache whose `config.json` is of a family of ours."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(cache_folder()).repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        folders = [Path(one.snapshot_path) for one in repo.revisions]
        families = [family for folder in folders if (family := _family(repo.repo_id, folder)) is not None]
        if families:
            yield {
                "model": repo.repo_id,
                "family": families[0],
                "bytes": repo.size_on_disk,
                "folder": str(repo.repo_path),
                "embedded": False,
            }


def _family(name: str, folder: Path) -> str | None:
    try:
        return family_of(ModelFolder(name, folder))
    except BifronsError:
        return None
