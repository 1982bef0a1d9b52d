"""Paint several prompts with several seeds in one batch, and put them into a grid: a row per prompt."""

import sys

from bifrons import JanusPipeline
from PIL import Image

PROMPTS = ["a photo of two hearts", "a photo of a green triangle"]
COLUMNS = 2

model = sys.argv[1] if len(sys.argv) > 1 else "janus-nano"
pipe = JanusPipeline.from_pretrained(model)
# Picture j of each prompt has seed 7 + j: alone, `generate(prompt, seed=8)` paints the same second picture.
pictures = pipe.generate(PROMPTS, num_images_per_prompt=COLUMNS, seed=7)

side = pictures[0].width
grid = Image.new("RGB", (COLUMNS * side, len(PROMPTS) * side))
for index, picture in enumerate(pictures):
    row, column = divmod(index, COLUMNS)
    grid.paste(picture, (column * side, row * side))
grid.save("grid.png")
print(f"grid.png: {len(pictures)} pictures of {side} x {side} pixels")
