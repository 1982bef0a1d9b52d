"""Find a thing in a picture, and draw the boxes on a copy of it."""

import sys
from pathlib import Path

from bifrons import VL2Pipeline
from bifrons.vl2.grounding import draw_boxes
from PIL import Image

path = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "elephant.png"
phrase = sys.argv[2] if len(sys.argv) > 2 else "the elephant"
model = sys.argv[3] if len(sys.argv) > 3 else "vl2-nano"
pipe = VL2Pipeline.from_pretrained(model)
picture = Image.open(path)
boxes = pipe.locate(picture, phrase)
for box in boxes:
    print(f"{box.label}: left {box.x1}, top {box.y1}, right {box.x2}, bottom {box.y2}")
draw_boxes(picture, boxes).save("found.png")
