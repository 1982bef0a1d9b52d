"""A picture to image tokens and back: what the image tokenizer keeps, and where two pictures differ."""

import sys
from pathlib import Path

from bifrons import JanusPipeline

EXAMPLES = Path(__file__).parent

model = sys.argv[1] if len(sys.argv) > 1 else "janus-nano"
paths = sys.argv[2:4] if len(sys.argv) > 3 else [EXAMPLES / "elephant.png", EXAMPLES / "bears.png"]
pipe = JanusPipeline.from_pretrained(model)
first, second = (pipe.encode_image(path) for path in paths)
print(f"{len(first)} image tokens, such as {[int(code) for code in first[:6]]}")
print(f"the two pictures differ in {int((first != second).sum())} of them")

back = pipe.decode_codes(first)[0]
back.save("decoded.png")
# Decoding is not exactly undone by encoding: some tokens of a picture change on the way.
print(f"encoded again, {int((pipe.encode_image(back) == first).sum())} of {len(first)} are the same")
