"""Paint several prompts with several seeds in one batch, and put them into a grid: a row per prompt.

Half-way the grid is saved too, as previews.png: what is painted then, and nothing where it isn't yet.
"""

import sys

from bifrons import GenerationStep, JanusPipeline
from PIL import Image
from torch import Tensor

PROMPTS = ["a photo of two pink sheep", "a photo of a green bear"]
COLUMNS = 2


def save_grid(name: str, pictures: list[Image.Image]) -> None:
    side = pictures[0].width
    grid = Image.new(pictures[0].mode, (COLUMNS * side, len(PROMPTS) * side))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, COLUMNS)
        grid.paste(picture, (column * side, row * side))
    grid.save(name)
    print(f"{name}: {len(pictures)} pictures of {side} x {side} pixels")


def show(step: GenerationStep, total: int, codes: Tensor) -> None:
    if step == total // 2:
        save_grid("previews.png", step.preview())


model = sys.argv[1] if len(sys.argv) > 1 else "janus-nano"
pipe = JanusPipeline.from_pretrained(model)
# Picture j of each prompt has seed 7 + j: alone, `generate(prompt, seed=8)` paints the same second picture.
save_grid("grid.png", pipe.generate(PROMPTS, num_images_per_prompt=COLUMNS, seed=7, callback=show))
