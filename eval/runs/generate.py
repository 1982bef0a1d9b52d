"""The stage that generates a run's images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast

from PIL import Image

from ...blocks.adapter_choice import parse_adapter
from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.placement.fingerprint import weights_fingerprint
from ...janus.image_generation import ImageGenerationOptions
from ...janus.pipeline import JanusPipeline
from ...scale.placement import NO_PLACEMENT, Placement, default_processes, weights_bytes
from ...scale.progress import Advance
from .ranks import Ranks
from .run_dir import ImageKey, RunDir, check_model
from .workers import run_workers


@dataclass(frozen=True)
class GenerationWorker:
    """Generates batches of a run. A batch is always generated as a whole and only its missing images are
    written, so that a resumed run equals an uninterrupted one bit for bit."""

    run: RunDir
    placement: Placement = NO_PLACEMENT

    def __call__(self, share: Sequence[list[ImageKey]], device: str, advance: Advance) -> None:
        if not share:
            return
        run, recipe = self.run, self.run.recipe
        where = self.placement.keywords(device)
        pipe = JanusPipeline.from_pretrained(
            recipe.model, dtype=recipe.dtype, quantize=recipe.quantize, progress=False, **where
        )
        for adapter in map(parse_adapter, recipe.adapters):
            pipe.load_adapter(adapter.folder, scale=adapter.scale)
        names = [field.name for field in fields(ImageGenerationOptions)]
        options = {name: getattr(recipe.options, name) for name in names}
        for batch in share:
            missing = set(run.unfinished(batch))
            if not missing:
                continue
            prompts = [recipe.prompt(run.rows[key.index]["prompt"]) for key in batch]
            seeds = [recipe.image_seed(*key) for key in batch]
            images = cast(list[Image.Image], pipe.generate(prompts, seed=seeds, progress=False, **options))
            for key, image in zip(batch, images, strict=True):
                if key in missing:
                    run.save(key, image)
                    advance(1)


def generate_images(
    run: RunDir,
    device: str | None = None,
    processes: int | None = None,
    threads: int = 1,
    ranks: Ranks | None = None,
    placement: Placement = NO_PLACEMENT,
) -> int:
    """Generate a run's missing images; returns how many were missing in this rank's share.

    processes: None for one per GPU or core, or for 1 with several `ranks` or a device map. Raises
    BifronsError where the model is not the run's, an image is another run's or the disk refuses; finished
    images stay.
    """
    ranks = ranks or Ranks()
    placement.check(device, processes)
    folder = find_model_folder(run.recipe.model)
    check_model(run, weights_fingerprint(run.recipe.model, run.recipe.adapters))
    for index in dict.fromkeys(key.index for key in run.image_keys()):
        run.write_metadata(index)
    share = ranks.divide(run.batches(), lambda batches: [batch for batch in batches if run.unfinished(batch)])
    missing = sum(len(run.unfinished(batch)) for batch in share)
    if missing:
        if processes is None:
            single = ranks.size > 1 or placement.takes_all
            processes = 1 if single else default_processes(device, weights_bytes(folder))
        worker = GenerationWorker(run, placement)
        run_workers(worker, share, missing, processes, ranks.device(device), threads, "painting", run.root)
    ranks.wait()
    if ranks.size == 1:
        run.remove_temporary_files()
    return missing
