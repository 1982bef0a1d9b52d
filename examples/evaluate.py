"""A small evaluation in Python: paint some of GenEval's prompts, detect what is there, score each picture.

The detector is that of the embedded models' world, so the score isn't comparable to GenEval's; `bifrons eval
run` has the official one too, goes on after a stop, and writes a report.
"""

import sys

from bifrons import JanusPipeline
from bifrons.eval.geneval.detectors import make_detector
from bifrons.eval.geneval.scoring import score_row
from bifrons.eval.geneval.suites import geneval_prompts

EVERY = 185

model = sys.argv[1] if len(sys.argv) > 1 else "janus-nano"
pipe = JanusPipeline.from_pretrained(model)
rows = geneval_prompts()[::EVERY]
pictures = pipe.generate([row["prompt"] for row in rows], seed=0)

detector, correct = make_detector("world"), 0
for index, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
    found = detector.detect(picture, row)
    verdict = score_row({"filename": f"{index}.png", "metadata": row, **found})
    correct += verdict.correct
    print(row["prompt"], "->", "correct" if verdict.correct else verdict.reason)
print(f"{correct} of {len(rows)} pictures are correct")
