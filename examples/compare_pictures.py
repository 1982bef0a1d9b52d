"""Show DeepSeek-VL2 two pictures in one question."""

import sys
from pathlib import Path

from bifrons import VL2Pipeline

EXAMPLES = Path(__file__).parent

model = sys.argv[1] if len(sys.argv) > 1 else "vl2-nano"
pictures = sys.argv[2:4] if len(sys.argv) > 3 else [EXAMPLES / "elephant.png", EXAMPLES / "bears.png"]
pipe = VL2Pipeline.from_pretrained(model)
for question in ("Which picture has more things?", "How many things do both pictures show?"):
    print(question, pipe.ask(pictures, question))
