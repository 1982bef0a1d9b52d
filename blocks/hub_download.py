"""Downloads a model's files from the hub into its cache: one format of weights, the top folder only.

Errors say what to do next. The hub is Hugging Face's, or the one at `HF_ENDPOINT`.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CheckpointError, one_line
from .foreign_files import is_adapter
from .json_config import TABLE_BYTES, read_value

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""In the order in which they are preferred."""


def split_revision(name: str) -> tuple[str, str | None]:
    """The hub id and the revision of `owner/name@revision`; None if it names none."""
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def cache_folder() -> str | None:
    """The hub's cache in BIFRONS_CACHE; None for the hub's own."""
    folder = os.environ.get("BIFRONS_CACHE")
    return os.path.expanduser(folder) if folder else None


def download(name: str, *, weights: bool = True, **options: Any) -> Path:
    """The folder in the hub's cache with a model's files, downloaded where they are not there yet.

    `name` is a hub id, maybe with `@revision`. `weights=False` leaves the weights out. `options` are
    `cache_dir`, `force_download`, `local_files_only` and `token` of `huggingface_hub.snapshot_download`.
    Without a network the files in the cache are used. Raises `CheckpointError`.
    """
    from huggingface_hub import snapshot_download

    repo_id, revision = split_revision(name)
    options = {"cache_dir": cache_folder(), **options}
    with hub_errors(name):
        files = None if options.get("local_files_only") else list_files(name, options.get("token"))
        if files is None:
            # Newer versions refuse a snapshot without all of the hub's files, so only one is asked for.
            cached = {**options, "local_files_only": True, "allow_patterns": ["config.json"]}
            return Path(str(snapshot_download(repo_id, revision=revision, **cached)))
        fetch = _Fetcher(repo_id, revision, options)
        small = [file for file in files if file.endswith(".json") and not file.endswith(".index.json")]
        if not weights:
            return fetch([*small, *(index for index in _INDICES[:1] if index in files)])
        return fetch([*small, *pick_weights(files, fetch)])


class _Fetcher:
    """Downloads files of one model by their names; returns their folder."""

    def __init__(self, repo_id: str, revision: str | None, options: dict[str, Any]) -> None:
        self._options = {"repo_id": repo_id, "revision": revision, **options}

    def __call__(self, names: Iterable[str]) -> Path:
        from huggingface_hub import snapshot_download

        patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in names]
        return Path(str(snapshot_download(**self._options, allow_patterns=patterns)))


def list_files(name: str, token: str | bool | None = None) -> dict[str, int] | None:
    """The files in a model's top folder on the hub with their sizes in bytes; None without a network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    repo_id, revision = split_revision(name)
    try:
        info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        return None
    except Exception as error:
        if not _is_network(error):
            raise
        return None
    return {one.rfilename: one.size or 0 for one in info.siblings or () if "/" not in one.rfilename}


def pick_weights(files: Iterable[str], fetch: Any) -> list[str]:
    """The files of the preferred format among a model's top files, with their index, which is fetched."""
    names = set(files)
    for index, ending in zip(_INDICES, (".safetensors", ".bin"), strict=True):
        single = index.removesuffix(".index.json")
        if index in names:
            content = read_value(fetch([index]) / index, TABLE_BYTES, CheckpointError)
            shards = content.get("weight_map") if isinstance(content, dict) else None
            named = set(map(str, shards.values())) if isinstance(shards, dict) else set()
            return [index, *sorted(named & names)]
        if single in names:
            return [single]
        loose = sorted(name for name in names if name.endswith(ending) and not is_adapter(Path(name)))
        if loose and ending == ".safetensors":
            return loose
    return []


def _is_network(error: BaseException) -> bool:
    """Whether an error of any HTTP library says that no answer came."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        kinds & {"OfflineModeIsEnabled", "ConnectionError", "TransportError", "Timeout", "TimeoutError"}
    )


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's library raises within into a `CheckpointError` that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except CheckpointError:
        raise
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        lines = str(error).strip().splitlines()
        reason = one_line(lines[0][:200] if lines else type(error).__name__)
        raise CheckpointError(f"{name!r} is no local folder, and {_advice(name, error, reason)}") from error


def _advice(name: str, error: Exception, reason: str) -> str:
    """What went wrong on the hub, and what to do."""
    repo_id, revision = split_revision(name)
    kind, response = type(error).__name__, getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    token = "a token (`hf auth login`, or HF_TOKEN)"
    if kind == "GatedRepoError":
        return (
            f"on the hub it is gated: accept its terms at https://huggingface.co/{repo_id} and give {token}"
        )
    if kind == "RevisionNotFoundError":
        return f"the hub's {repo_id} has no revision {revision!r}; accepted: a branch, tag or commit of it"
    if status == 401 and os.environ.get("HF_TOKEN"):
        return "the hub refuses the token in HF_TOKEN, or has no such model; check both, or unset HF_TOKEN"
    if kind == "RepositoryNotFoundError" or status == 401:
        return f"the hub has no such model, or it is private: check the name, or give {token}"
    if kind == "HFValidationError":
        return f"it is no hub id: {reason}"
    if kind in ("LocalEntryNotFoundError", "IncompleteSnapshotError") or _is_network(error):
        return (
            "it is not in the cache and can't be fetched: the hub can't be reached, or HF_HUB_OFFLINE or "
            "local_files_only forbids it. Without a network, give the folder that holds the files"
        )
    return f"it could not be fetched from the hub: {reason}. The folder that holds the files can be given too"
