"""lmms-eval itself, where it is installed, on questions in local files: in process and against our server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import SHAPES, sample_scene

from ...models import SHAPES_VL2

pytest.importorskip(
    "lmms_eval", reason="lmms-eval is not installed (pip install lmms_eval)", exc_type=ImportError
)

UTILS = """
from PIL import Image
def visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]
def text(doc):
    return doc["question"]
def process(doc, results):
    return {"acc": float(results[0].strip().strip(".").lower() == doc["answer"])}
"""
TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
task: local_read
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
process_results: !function utils.process
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 0}}
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    """A folder with a task: six yes-or-no questions about pictures of the world of shapes."""
    folder, rng, rows = tmp_path_factory.mktemp("task"), Random(5), []
    for number in range(6):
        scene = sample_scene(rng)
        there = {obj.shape for obj in scene.objects}
        shape = scene.objects[0].shape if number % 2 else next(one for one in SHAPES if one not in there)
        to_pil(scene, 128).save(folder / f"{number}.png")
        answer = "yes" if number % 2 else "no"
        rows.append(
            {"image": str(folder / f"{number}.png"), "question": f"Is there a {shape}?", "answer": answer}
        )
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "utils.py").write_text(UTILS)
    (folder / "read.yaml").write_text(TASK.format(rows=folder / "rows.json"))
    return folder


def accuracy(task: Path, model: str, arguments: str) -> float:
    """The accuracy that lmms-eval reports."""
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", arguments]
    command += ["--tasks", "local_read", "--include_path", str(task), "--batch_size", "1"]
    offline = {"HF_HOME": str(task / "hf"), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"\|\s*acc\s*\|[^|]*\|\s*([\d.]+)", done.stdout + done.stderr)
    assert found, done.stdout[-2000:]
    return float(found[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server with a small trained model."""
    command = [sys.executable, "-m", "bifrons", "serve", "-m", SHAPES_VL2, "--port", "0", "--no-warmup"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "http://" in line)
        yield re.findall(r"http://[\d.:]+", line)[0]
        process.terminate()


def test_in_process(task) -> None:
    assert accuracy(task, "bifrons", f"pretrained={SHAPES_VL2}") == 1.0


def test_against_the_server(task, server) -> None:
    assert accuracy(task, "openai", f"model=shapes-vl2,base_url={server}/v1") == 1.0
