"""The stage that paints a run's pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

from PIL import Image

from ...blocks.checkpoints.hub import find_model_folder
from ...janus.image_generation import ImageGenerationOptions
from ...janus.pipeline import JanusPipeline
from .recipe import model_fingerprint
from .run_dir import ImageKey, RunDir, check_model, open_run
from .workers import Advance, Ranks, default_processes, run_workers, weights_bytes


@dataclass(frozen=True)
class GenerationWorker:
    """Paints batches of a run. A batch is always painted as a whole, so that a resumed run has, to the bit,
    the pictures of one that was never interrupted; only what is missing of it is written."""

    root: Path

    def __call__(self, share: Sequence[list[ImageKey]], device: str, advance: Advance) -> None:
        if not share:
            return
        run = open_run(self.root)
        recipe = run.recipe
        pipe = JanusPipeline.from_pretrained(recipe.model, device, recipe.dtype, progress=False)
        names = [field.name for field in fields(ImageGenerationOptions)]
        options = {name: getattr(recipe.options, name) for name in names}
        for batch in share:
            missing = set(run.unfinished(batch))
            if not missing:
                continue
            prompts = [recipe.prompt(run.rows[picture.index]["prompt"]) for picture in batch]
            seeds = [recipe.image_seed(*picture) for picture in batch]
            painted = cast(list[Image.Image], pipe.generate(prompts, seed=seeds, **options))
            for picture, image in zip(batch, painted, strict=True):
                if picture in missing:
                    run.save(picture, image)
            advance(len(missing))


def generate_images(
    run: RunDir,
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    ranks: Ranks | None = None,
) -> int:
    """Paint what a run lacks; the number of pictures that were missing in this rank's share.

    processes: None for one per GPU or core; 1 where `ranks` are several. Raises BifronsError where the model
    is not the run's, a picture is another run's or the disk refuses; what is finished stays.
    """
    ranks = ranks or Ranks()
    folder = find_model_folder(run.recipe.model)
    check_model(run, model_fingerprint(folder))
    for index in dict.fromkeys(picture.index for picture in run.image_keys()):
        run.write_metadata(index)
    share = ranks.divide(run.batches(), lambda batches: [batch for batch in batches if run.unfinished(batch)])
    missing = sum(len(run.unfinished(batch)) for batch in share)
    if missing:
        if processes is None:
            processes = 1 if ranks.size > 1 else default_processes(device, weights_bytes(folder))
        worker = GenerationWorker(run.root)
        run_workers(worker, share, missing, processes, ranks.device(device), threads, "painting")
    ranks.wait()
    if ranks.size == 1:
        run.remove_temporary_files()
    return missing
