"""The small trained models that tests of mechanics run: coloured shapes, pictures of 128 px and 256 codes.

Tests that are about the embedded models, which another training may replace, name those instead.
"""

from pathlib import Path

from bifrons.blocks.checkpoints.quantize import replace_with_quantized
from bifrons.blocks.model.layers import Linear
from torch import nn

DATA = Path(__file__).parent / "data"

SHAPES_JANUS = str(DATA / "shapes-janus")
"""A Janus model that paints, reads and counts one to four shapes."""

SHAPES_VL2 = str(DATA / "shapes-vl2")
"""A DeepSeek-VL2 model that reads and points in the same world, and compares two pictures."""


def quantize_model(model: nn.Module, kind: str) -> nn.Module:
    """Quantize a loaded model in place, layer by layer, on its devices."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.unpack()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for param, weight in replace_with_quantized(model, kind).items():
        for leaf, tensor in weight.encode(parameters.pop(param)).items():
            setattr(weight, leaf, tensor)
    return model
