"""The kind `json`: every JSON file that is read, of models, of codes and of evaluations."""

import gzip
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cases import Kind
from commands import DATA, JANUS, VL2, link_folder, run_command, run_commands, warm_up
from mutate import mutate_bytes, mutate_json
from PIL import Image
from safetensors.torch import load_file, save_file

MODEL_FILES = (
    "config.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "generation_config.json",
)
TRANSFORMERS_CONFIG = {
    "model_type": "janus",
    "text_config": {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 704}
    | {"num_attention_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
    "vision_config": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 96},
    "vq_config": {"base_channels": 32, "latent_channels": 64, "num_embeddings": 512},
    "tie_word_embeddings": True,
}
QUANTIZED = {"quant_method": "bifrons", "kind": "int8"}
EVALUATIONS = (
    "run.json", "run.json", "prompts.jsonl", "images/00000/metadata.jsonl", "images/00000/samples/0000.json",
    "detect.json", "detections.jsonl", "results.jsonl", "summary.json",
)  # fmt: skip
_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-shared-")
SHARED = Path(_FOLDER.name)
"""Filled by `prepare`: a picture, an evaluation, codes, and a model in two files."""


def prepare() -> None:
    """Make what the cases are changed copies of."""
    warm_up()
    if any(SHARED.iterdir()):
        return
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(SHARED / "picture.png")
    names = ("two circles", "a red star")
    rows = [
        {"tag": "counting", "include": [{"class": "circle", "count": 2}], "prompt": names[0]},
        {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}], "prompt": names[1]},
    ]
    prompts = SHARED / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_command(
        "eval", "run", "-R", SHARED / "run", "-m", JANUS, "--suite", "geneval", "--prompts", prompts,
        "--images-per-prompt", 1, "--processes", 1, "--detector", "shapes",
    )  # fmt: skip
    (SHARED / "codes.json").write_text(json.dumps({"codes": [5] * 36, "grid": [6, 6]}))
    split = link_folder(VL2, SHARED / "split", "model.safetensors")
    tensors, index = load_file(VL2 / "model.safetensors"), {}
    for number in (1, 2):
        name = f"model-{number:05d}-of-00002.safetensors"
        part = dict(list(tensors.items())[number - 1 :: 2])
        save_file(part, split / name)
        index |= dict.fromkeys(part, name)
    (split / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def build(rng: random.Random, folder: Path) -> list[list[object]]:
    """A case: the commands that read a damaged file."""
    makers = (
        _model,
        _model,
        _model,
        _model,
        _other_config,
        _index,
        _codes,
        _options,
        _evaluation,
        _detections,
    )
    return rng.choice(makers)(rng, folder)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def use_model(rng: random.Random, model: Path, family: Path, out: Path) -> list[list[object]]:
    """Commands that describe and use a model."""
    few = ["-m", model, "--eager", "--device", "cpu", "--dtype", "float32"]
    picture = SHARED / "picture.png"
    others: list[list[object]] = [
        ["ask", "What is red?", *few, "--max-new-tokens", "2"],
        ["ask", picture, "What is this?", *few, "--max-new-tokens", "2"],
    ]
    if family == JANUS:
        others.append(["encode", picture, "-m", model, "--device", "cpu"])
    else:
        others.append(["locate", picture, "the star", "-m", model, "--device", "cpu"])
    return [["info", model, *rng.choice(([], ["--json"]))], rng.choice(others)]


def _model(rng: random.Random, folder: Path) -> list[list[object]]:
    family, name = rng.choice((JANUS, VL2)), rng.choice(MODEL_FILES)
    source = family / name
    content = _read(source) if source.exists() else {"guidance_scale": 5.0, "do_sample": True, "top_k": 50}
    if name == "config.json" and rng.random() < 0.1:
        content["quantization_config"] = dict(QUANTIZED)
    model = link_folder(family, folder / "model", name)
    (model / name).write_bytes(mutate_json(rng, content))
    return use_model(rng, model, family, folder)


def _other_config(rng: random.Random, folder: Path) -> list[list[object]]:
    """Configs of other formats and sizes, whose weights are not at hand."""
    official = sorted((DATA / "vl2_official").glob("*.config.json"))
    content = rng.choice([TRANSFORMERS_CONFIG, *map(_read, official)])
    model = link_folder(rng.choice((JANUS, VL2)), folder / "model", "config.json")
    (model / "config.json").write_bytes(mutate_json(rng, content))
    return [["info", model]]


def _index(rng: random.Random, folder: Path) -> list[list[object]]:
    name = "model.safetensors.index.json"
    model = link_folder(SHARED / "split", folder / "model", name)
    (model / name).write_bytes(mutate_json(rng, _read(SHARED / "split" / name)))
    return use_model(rng, model, VL2, folder)


def _codes(rng: random.Random, folder: Path) -> list[list[object]]:
    codes, model = [rng.randrange(512) for _ in range(36)], ["-m", JANUS] if rng.random() < 0.7 else []
    if rng.random() < 0.3:
        import numpy as np

        path = folder / "codes.npy"
        np.save(path, np.array(codes).reshape(6, 6))
        path.write_bytes(mutate_bytes(rng, path.read_bytes(), 128))
    else:
        path = folder / "codes.json"
        path.write_bytes(mutate_json(rng, {"model": str(JANUS), "grid": [6, 6], "codes": codes}))
    return [["decode", path, *model, "--device", "cpu", "-o", folder / "codes.png"]]


def _options(rng: random.Random, folder: Path) -> list[list[object]]:
    """JSON on the command line."""
    option = rng.choice(("--device-map", "--max-memory"))
    content = (
        {"vision_model": "cpu", "language_model": "cpu"} if option == "--device-map" else {"cpu": "8GiB"}
    )
    text = mutate_json(rng, content).decode("utf-8", "replace").replace("\0", "")[:100_000]
    return [["ask", "hello", "-m", VL2, "--max-new-tokens", "1", f"{option}={text}"]]


def copy_run(run: Path, but: str = "") -> None:
    """A copy of the evaluation, without one of its files or folders."""
    but_path = SHARED / "run" / but
    shutil.copytree(
        SHARED / "run", run, ignore=lambda folder, names: [n for n in names if Path(folder, n) == but_path]
    )


def stages(run: Path, folder: Path) -> list[list[object]]:
    """The stages of an evaluation, each of which reads some of its files."""
    few = ["--processes", 1]
    return [
        ["eval", "run", "-R", run, *few],
        ["eval", "generate", "-R", run, *few],
        ["eval", "detect", "-R", run, *few, "--detector", "shapes"],
        ["eval", "score", "-R", run],
        ["eval", "report", "-R", run],
        ["eval", "compare", SHARED / "run", run],
        ["eval", "import", run / "images", "-R", folder / "new", *few, "--detector", "shapes"],
    ]


def _evaluation(rng: random.Random, folder: Path) -> list[list[object]]:
    run, name = folder / "run", rng.choice(EVALUATIONS)
    copy_run(run)
    (run / name).write_bytes(_changed_lines(rng, run / name))
    choices = stages(run, folder)
    readers = {"detections.jsonl": 3, "results.jsonl": 4, "summary.json": 4, "images/00000/metadata.jsonl": 6}
    return [choices[readers.get(name, 0)], rng.choice(choices)]


def _detections(rng: random.Random, folder: Path) -> list[list[object]]:
    """Files of others: detections, plain or compressed, and prompts."""
    content = _changed_lines(rng, SHARED / "run" / "detections.jsonl")
    path = folder / "detections.jsonl"
    if rng.random() < 0.4:
        path = folder / "detections.jsonl.gz"
        if rng.random() < 0.1:
            content = b" " * 400_000_000 + content
        content = gzip.compress(content, 1)
        if rng.random() < 0.5:
            content = mutate_bytes(rng, content, 20)
    path.write_bytes(content)
    prompts = folder / "prompts.jsonl"
    prompts.write_bytes(_changed_lines(rng, SHARED / "prompts.jsonl"))
    source = SHARED / "run" / "images"
    return [
        ["eval", "score", "--detections", path, "-o", folder / "results.jsonl"],
        ["eval", "import", source, "-R", folder / "new", "--prompts", prompts, "--processes", 1],
    ]


def _changed_lines(rng: random.Random, path: Path) -> bytes:
    """The file with one line changed; a `.json` file is one line."""
    text = path.read_text(encoding="utf-8")
    lines = [text] if path.suffix == ".json" else text.splitlines()
    number = rng.randrange(len(lines))
    changed = [line.encode() for line in lines]
    changed[number] = mutate_json(rng, json.loads(lines[number]))
    return b"\n".join(changed) + b"\n"


JSON = Kind("json", build, run_commands, prepare=prepare, seconds=30)
