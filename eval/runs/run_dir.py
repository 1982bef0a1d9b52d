"""A run folder: pictures in GenEval's layout, each with a sidecar, and what is left, read from the disk.

    R/run.json                          the recipe, the model's fingerprint and the run's
    R/prompts.jsonl                     the whole suite
    R/images/00000/metadata.jsonl       one line of it
    R/images/00000/samples/0000.png     a picture
    R/images/00000/samples/0000.json    its sidecar: seed, settings, fingerprints, the picture's sha256

A picture is finished when its file is there and is, byte for byte, the one that its sidecar tells of, and the
sidecar has the run's fingerprint. The sidecar is written first, both under other names and then renamed, so
that a process can be killed at any time.
"""

import hashlib
import io
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ...blocks.chat.image_io import write_png
from ...blocks.errors import BifronsError, CheckpointError
from ..atomic_io import disk_errors, fresh_folder, read_json, write_json, write_whole
from ..geneval.suites import Row, lines_sha256, parse_prompts, select_prompts, to_jsonl
from .recipe import Recipe, differences, fingerprint

log = logging.getLogger(__name__)


class ImageKey(NamedTuple):
    """Image `number` of prompt `index`, both from 0; the index counts in the whole suite."""

    index: int
    number: int

    @property
    def filename(self) -> str:
        """Its path within the folder of pictures, and its name in every file of results."""
        return f"{self.index:05d}/samples/{self.number:04d}.png"


@dataclass(frozen=True)
class RunDir:
    """An open run folder; make one with `create_run` or `open_run`. `rows` is the whole suite."""

    root: Path
    recipe: Recipe
    model_fingerprint: str
    rows: tuple[Row, ...]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe, self.model_fingerprint)

    @property
    def images_dir(self) -> Path:
        return self.root / "images"

    def image_keys(self) -> list[ImageKey]:
        """All pictures of the run, in order."""
        indices = select_prompts(len(self.rows), self.recipe.limit)
        return [ImageKey(i, j) for i in indices for j in range(self.recipe.images_per_prompt)]

    def batches(self) -> list[list[ImageKey]]:
        """The pictures as they are painted together: the same division whoever paints, and when."""
        pictures, size = self.image_keys(), self.recipe.batch_size
        return [pictures[start : start + size] for start in range(0, len(pictures), size)]

    def path(self, picture: ImageKey) -> Path:
        return self.images_dir / picture.filename

    def is_finished(self, picture: ImageKey) -> bool:
        """Whether the picture is finished. Raises BifronsError where it is another run's."""
        return self.sha256(picture) is not None

    def sha256(self, picture: ImageKey) -> str | None:
        """The finished picture's sha256, or None. Raises BifronsError where it is another run's."""
        path = self.path(picture)
        try:
            content = path.read_bytes()
            sidecar = json.loads(path.with_suffix(".json").read_bytes())
        except FileNotFoundError as error:
            if error.filename != str(path):
                log.warning("%s has no sidecar and is painted again", path)
            return None
        except OSError as error:
            raise BifronsError(f"{error.filename} can't be read: {error.strerror}") from error
        except ValueError:
            log.warning("%s has a damaged sidecar and is painted again", path)
            return None
        found = sidecar.get("fingerprint") if isinstance(sidecar, dict) else None
        if found != self.fingerprint:
            raise BifronsError(
                f"{path} was painted by another recipe or model (fingerprint {found}); accepted in this run: "
                f"{self.fingerprint}. Take another run folder, or remove that picture"
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != sidecar.get("sha256"):
            log.warning("%s is damaged and is painted again", path)
            return None
        return digest

    def unfinished(self, pictures: Sequence[ImageKey]) -> list[ImageKey]:
        """Those of the pictures that are not finished."""
        return [picture for picture in pictures if not self.is_finished(picture)]

    def write_metadata(self, index: int) -> None:
        """The prompt's metadata.jsonl, if it isn't there. Raises BifronsError where it is another one."""
        path = self.images_dir / f"{index:05d}" / "metadata.jsonl"
        wanted = to_jsonl([self.rows[index]])
        if path.is_file():
            if path.read_bytes() != wanted:
                raise BifronsError(f"{path} holds another prompt than this run's; take another run folder")
            return
        fresh_folder(path.parent / "samples")
        write_whole(path, wanted, durable=False)

    def save(self, picture: ImageKey, image: Image.Image) -> None:
        """Write a finished picture and its sidecar. Raises BifronsError where the disk refuses."""
        stream = io.BytesIO()
        write_png(image, stream)
        content, sentence = stream.getvalue(), self.rows[picture.index]["prompt"]
        sidecar = {
            "fingerprint": self.fingerprint,
            "model_fingerprint": self.model_fingerprint,
            "sha256": hashlib.sha256(content).hexdigest(),
            "width": image.width,
            "height": image.height,
            **self.recipe.to_json(),
            "prompt": self.recipe.prompt(sentence),
            "run_seed": self.recipe.seed,
            "seed": self.recipe.image_seed(*picture),
        }
        path = self.path(picture)
        self.write_metadata(picture.index)
        write_json(path.with_suffix(".json"), sidecar, durable=False)
        write_whole(path, content, durable=False)

    def remove_temporary_files(self) -> None:
        """Remove what killed processes left half-written; only when nobody paints in the folder."""
        with disk_errors(f"tidy {self.images_dir}"):
            for path in self.images_dir.glob("*/**/.*.tmp"):
                path.unlink(missing_ok=True)


def create_run(root: Path, recipe: Recipe, rows: Sequence[Row], model_fingerprint: str) -> RunDir:
    """Make a run folder, or open one that was made with exactly these.

    `recipe.prompts_sha256` is filled in from the rows. Raises BifronsError, with the fields that differ,
    where the folder belongs to another recipe or model, and where it can't be written.
    """
    recipe = Recipe(**{**recipe.to_json(), "prompts_sha256": lines_sha256(list(rows))})
    select_prompts(len(rows), recipe.limit)
    run = RunDir(root, recipe, model_fingerprint, tuple(rows))
    if not (root / "run.json").exists():
        if (root / "images").exists() and any((root / "images").iterdir()):
            raise BifronsError(f"{root} holds pictures but no run.json; accepted: a new folder, or a run's")
        fresh_folder(root)
        write_whole(root / "prompts.jsonl", to_jsonl(list(rows)))
        content = {"fingerprint": run.fingerprint, "model_fingerprint": model_fingerprint}
        write_json(root / "run.json", {**content, "recipe": recipe.to_json(), "software": software()})
        return run
    found = open_run(root)
    check_same_recipe(found, recipe, model_fingerprint)
    return found


def check_same_recipe(run: RunDir, recipe: Recipe, model_fingerprint: str) -> None:
    """Raise BifronsError unless a run folder has this recipe (but for the model's name) and model."""
    lines_ = [line for line in differences(run.recipe, recipe) if not line.startswith("model ")]
    if model_fingerprint != run.model_fingerprint:
        lines_.append(
            f"model {run.recipe.model!r} ({run.model_fingerprint[:12]}), not {recipe.model!r} "
            f"({model_fingerprint[:12]})"
        )
    if lines_:
        raise BifronsError(
            f"{run.root} is the run of another recipe: {'; '.join(lines_)}. Two recipes never mix in one "
            "run; accepted: the same recipe, or another run folder"
        )


def open_run(root: Path) -> RunDir:
    """Open a run folder that was made. Raises BifronsError for another folder, or one that was changed."""
    content = read_json(root / "run.json") if (root / "run.json").is_file() else None
    if not isinstance(content, Mapping) or not isinstance(content.get("recipe"), Mapping):
        raise BifronsError(f"{root} is no run folder with a recipe; accepted: one of `bifrons eval run`")
    recipe = Recipe.from_json(content["recipe"])
    source = root / "prompts.jsonl"
    rows = parse_prompts(source.read_bytes() if source.is_file() else b"", str(source))
    run = RunDir(root, recipe, str(content.get("model_fingerprint")), tuple(rows))
    if run.fingerprint != content.get("fingerprint") or lines_sha256(rows) != recipe.prompts_sha256:
        raise BifronsError(f"{root}: run.json or prompts.jsonl was changed since the run began")
    return run


def check_model(run: RunDir, found: str) -> None:
    """Raise CheckpointError unless the model that is to paint has the run's fingerprint."""
    if found != run.model_fingerprint:
        raise CheckpointError(
            f"the model {run.recipe.model!r} is not what this run began with: its fingerprint is now "
            f"{found[:12]}, the run's {run.model_fingerprint[:12]}; accepted: the same files, or another run "
            "folder"
        )


def software() -> dict[str, str]:
    """Versions that can matter to the pixels, for the record; not part of a fingerprint."""
    names = ("bifrons", "torch", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
