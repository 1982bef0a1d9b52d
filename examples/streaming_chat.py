"""A conversation of several turns about a picture; answers are printed while they are written."""

import sys
from pathlib import Path
from typing import Any

from bifrons import VL2Pipeline

QUESTIONS = ("How many things are there?", "What color is the elephant?")

picture = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "elephant.png"
model = sys.argv[2] if len(sys.argv) > 2 else "vl2-nano"
pipe = VL2Pipeline.from_pretrained(model)
messages: list[dict[str, Any]] = []
for question in QUESTIONS:
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if not messages:
        content.insert(0, {"type": "image", "image": picture})
    messages.append({"role": "user", "content": content})
    print(">", question)
    answer = ""
    for piece in pipe.chat(messages, stream=True, seed=0):
        print(piece, end="", flush=True)
        answer += piece
    print()
    messages.append({"role": "assistant", "content": answer})
