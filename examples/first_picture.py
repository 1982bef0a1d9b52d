"""Paint a picture, ask about it and save it.

python examples/first_picture.py [MODEL]      MODEL: a folder, a hub id, or (as here) an embedded model
"""

import sys

from bifrons import JanusPipeline

model = sys.argv[1] if len(sys.argv) > 1 else "janus-nano"
pipe = JanusPipeline.from_pretrained(model)
picture = pipe.generate("a photo of a red elephant left of a blue umbrella", seed=1)[0]
print(pipe.ask(picture, "What is left of the umbrella?"))
picture.save("first-picture.png")
