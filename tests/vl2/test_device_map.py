"""The units of a VL2 model that a device map places."""

import pytest
import torch
from bifrons.blocks.placement.device_map import unit_bytes
from bifrons.blocks.placement.layout import longest_prefix, units
from bifrons.vl2.config import read_config
from bifrons.vl2.model import VL2Model
from bifrons.vl2.weight_names import keep_float32


@pytest.fixture(scope="module")
def vl2_mini(janus_mini) -> VL2Model:
    with torch.device("meta"):
        return VL2Model(read_config(janus_mini.parent / "vl2-mini-noaux"))


def test_units_cover_all_that_has_weights_but_two_separators(vl2_mini):
    known = dict.fromkeys(units(vl2_mini))
    loose = [name for name, _ in vl2_mini.named_parameters() if not longest_prefix(name, known)]
    assert loose == ["image_newline", "view_seperator"]
    halves = [unit_bytes(vl2_mini, dtype, None, keep_float32) for dtype in (torch.float32, torch.bfloat16)]
    assert all(2 * halves[1][name] >= size > halves[1][name] for name, size in halves[0].items())
