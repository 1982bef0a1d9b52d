"""Type checkers know what the pipelines return: pyright in strict mode."""

import json
import subprocess
import sys
from pathlib import Path

import bifrons

CODE = """
from collections.abc import Iterator
from typing import assert_type

from bifrons import GenerationStep, JanusPipeline, VL2Pipeline
from PIL import Image
from torch import Tensor

pipe = JanusPipeline.from_pretrained("janus-nano")
picture = pipe.generate("a photo of a red star and a blue circle", seed=1)[0]
print(pipe.ask(picture, "What color is the star?"))
picture.save("star.png")
assert_type(pipe.generate(["a"], 2, 7), list[Image.Image])
assert_type(pipe.generate("a", output_type="codes"), Tensor)
assert_type(pipe.ask("a.png", "b"), str)
assert_type(pipe.ask("a.png", "b", stream=True), Iterator[str])
assert_type(pipe.chat([{"role": "user", "content": "a"}], stream=True), Iterator[str])
assert_type(pipe("a").images, list[Image.Image])


def show(step: GenerationStep, total: int, codes: Tensor) -> None:
    assert_type(step.preview(), list[Image.Image])


pipe.generate("a", callback=show)
assert_type(VL2Pipeline.from_pretrained("vl2-nano").caption("a.png"), str)
"""


def test_the_first_lines_are_typed_strictly(tmp_path: Path) -> None:
    (tmp_path / "bifrons").symlink_to(Path(bifrons.__file__).parent)
    (tmp_path / "first.py").write_text(CODE)
    config = {"include": ["first.py"], "typeCheckingMode": "strict", "extraPaths": ["."]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
