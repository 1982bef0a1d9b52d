"""Adapters that clients load and unload while the server runs, from one folder: vLLM's routes and fields."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends

from ...blocks.adapter_choice import NAME_TEXT, AdapterChoice, is_name
from ...blocks.errors import shown
from . import responses
from .bodies import body_schema, json_body
from .errors import invalid_value
from .registry import ModelRegistry, ServedModel
from .schema_base import Request, ShortText

MOST = 64
"""Adapters of a server that may be loaded at the same time."""


class LoadAdapterRequest(Request):
    """The body of `POST /v1/load_lora_adapter`: the name to serve it under, and its folder."""

    lora_name: ShortText
    lora_path: ShortText


class UnloadAdapterRequest(Request):
    """The body of `POST /v1/unload_lora_adapter`."""

    lora_name: ShortText


BODIES = (LoadAdapterRequest, UnloadAdapterRequest)
"""The bodies of the two routes."""


def router(registry: ModelRegistry, card: Callable[[ServedModel], responses.ModelCard]) -> APIRouter:
    """The two routes, for a server with `adapters_from`; they reply with the `card` of the adapter."""
    routes = APIRouter()
    read_load, read_unload = json_body(LoadAdapterRequest), json_body(UnloadAdapterRequest)

    @routes.post("/v1/load_lora_adapter", openapi_extra=body_schema(LoadAdapterRequest))
    async def load(body: Annotated[LoadAdapterRequest, Depends(read_load)]) -> responses.ModelCard:
        """Serve an adapter under a new name. Requests go on meanwhile."""
        if sum(one.base is not None for one in registry.models.values()) >= MOST:
            raise invalid_value(f"the server has {MOST} adapters; unload one first", "lora_name")
        if not is_name(body.lora_name):
            raise invalid_value(f"lora_name is {shown(body.lora_name)}; accepted: {NAME_TEXT}", "lora_name")
        folder = _folder_in(registry.options.adapters_from or Path(), body.lora_path)
        choice = AdapterChoice(folder, name=body.lora_name)
        return card(await registry.load_adapter(choice))

    @routes.post("/v1/unload_lora_adapter", openapi_extra=body_schema(UnloadAdapterRequest))
    async def unload(body: Annotated[UnloadAdapterRequest, Depends(read_unload)]) -> responses.ModelCard:
        """Serve an adapter no longer; its requests that run are finished."""
        return card(registry.unload_adapter(body.lora_name))

    return routes


def _folder_in(root: Path, name: str) -> Path:
    """The folder that a client names. Raises `ApiError` for any that isn't below `root`."""
    root = Path(os.path.realpath(root))
    folder = root if "\0" in name else Path(os.path.realpath(root / name))
    if folder == root or not folder.is_relative_to(root) or not os.path.isdir(folder):
        raise invalid_value(f"{shown(name)} is no folder in the server's folder of adapters", "lora_path")
    return folder
