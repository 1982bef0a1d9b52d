"""From what the user calls a model to the folder with its files."""

from pathlib import Path

from ..errors import CheckpointError

EMBEDDED = {"janus-nano": "Janus", "vl2-nano": "DeepSeek-VL2"}
"""The small models that the package carries, and their families."""

_WEIGHTS = Path(__file__).parent.parent.parent / "nano" / "weights"
_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin"]


def find_model_folder(model: str | Path) -> Path:
    """A local folder, the name of an embedded model or a hub id (`owner/name`) -> the local folder.

    A folder on disk wins over a name. A hub id is downloaded once into the hub's cache.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; accepted: the folder that holds config.json and the weights"
        )
    name = str(model)
    if name in EMBEDDED and (_WEIGHTS / name).is_dir():
        return _WEIGHTS / name
    if isinstance(model, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        carried = ", ".join(sorted(n for n in EMBEDDED if (_WEIGHTS / n).is_dir()))
        raise CheckpointError(
            f"no folder {name!r}; accepted: a model folder, a hub id such as deepseek-ai/Janus-Pro-1B, "
            f"or an embedded model ({carried})"
        )
    return _download(name)


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{repo_id!r} is no local folder and could not be fetched from the hub: {first_line}. "
            "Without a network, give the folder that holds the files"
        ) from error
