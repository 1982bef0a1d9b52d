"""How guidance and a negative prompt change a picture: the same seed, painted three times, side by side."""

import sys

from bifrons import JanusPipeline
from PIL import Image

PROMPT = "a photo of a red elephant"

model = sys.argv[1] if len(sys.argv) > 1 else "janus-nano"
pipe = JanusPipeline.from_pretrained(model)
pictures = [
    pipe.generate(PROMPT, seed=3, guidance_scale=1.0)[0],  # none
    pipe.generate(PROMPT, seed=3)[0],  # the model's own scale
    pipe.generate(PROMPT, seed=3, negative_prompt="a photo of a blue elephant")[0],
]
strip = Image.new("RGB", (sum(picture.width for picture in pictures), pictures[0].height))
for index, picture in enumerate(pictures):
    strip.paste(picture, (index * picture.width, 0))
    print(f"picture {index + 1}: guidance scale {picture.info['guidance_scale']}")
strip.save("guidance.png")
