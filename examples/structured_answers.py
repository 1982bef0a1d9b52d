"""Answers that a program can read: one of some choices, a text of a pattern, JSON that matches a schema."""

import json
import sys
from pathlib import Path

from bifrons import VL2Pipeline

model = sys.argv[1] if len(sys.argv) > 1 else "vl2-nano"
pipe = VL2Pipeline.from_pretrained(model)
picture = sys.argv[2] if len(sys.argv) > 2 else Path(__file__).parent / "elephant.png"

color = pipe.ask(picture, "What color is the elephant?", choices=["red", "green", "blue"])
count = pipe.ask(picture, "How many elephants are there?", regex="one|two|three|four")
properties = {"color": {"enum": ["red", "green", "blue"]}}
schema = {"type": "object", "properties": properties, "required": ["color"]}
answer = pipe.ask(picture, "What color is the elephant?", json_schema=schema)
print("color:", color)
print("count:", count)
print("as JSON:", json.loads(answer))
