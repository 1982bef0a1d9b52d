"""The three small checkpoints in DeepSeek-VL2's format, with the reference's figures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bifrons.vl2.pipeline import VL2Pipeline
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Case:
    """A loaded checkpoint, its figures, and its five conversations with their pictures in them."""

    folder: Path
    pipe: VL2Pipeline
    figures: dict[str, Any]
    tensors: dict[str, Tensor]
    conversations: list[list[dict[str, Any]]]


@pytest.fixture(scope="session")
def vl2_cases(parity_picture) -> dict[str, Case]:
    cases = {}
    for kind in ("mha", "mla", "noaux"):
        folder = DATA / f"vl2-mini-{kind}"
        figures = json.loads((folder / "figures.json").read_text())
        pictures = [parity_picture(i, w, h) for i, (w, h) in enumerate(figures["pictures"])]
        conversations = []
        for messages, numbers in zip(figures["conversations"], figures["conversation_pictures"], strict=True):
            first = {**messages[0], "images": [pictures[number] for number in numbers]}
            conversations.append([first, *messages[1:]])
        pipe = VL2Pipeline.from_pretrained(folder, device="cpu")
        cases[kind] = Case(folder, pipe, figures, load_file(folder / "figures.safetensors"), conversations)
    return cases


@pytest.fixture(params=["mha", "mla", "noaux"])
def case(request, vl2_cases) -> Case:
    return vl2_cases[request.param]
