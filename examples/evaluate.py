"""A small evaluation in Python: paint GenEval-style prompts, detect what is there, score each picture.

Prompts and detector are those of the embedded models' small world; `bifrons eval run` has the real ones,
goes on after a stop, and writes a report.
"""

import sys

from bifrons import JanusPipeline
from bifrons.eval.geneval.detectors import ShapesDetector
from bifrons.eval.geneval.scoring import score_row
from bifrons.eval.geneval.suites import shapes_prompts

COUNT = 3

model = sys.argv[1] if len(sys.argv) > 1 else "janus-nano"
pipe = JanusPipeline.from_pretrained(model)
rows = shapes_prompts(seed=0)[:COUNT]
pictures = pipe.generate([row["prompt"] for row in rows], seed=0)

detector, correct = ShapesDetector(), 0
for index, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
    found = detector.detect(picture, row)
    verdict = score_row({"filename": f"{index}.png", "metadata": row, **found})
    correct += verdict.correct
    print(row["prompt"], "->", "correct" if verdict.correct else verdict.reason)
print(f"{correct} of {COUNT} pictures are correct")
