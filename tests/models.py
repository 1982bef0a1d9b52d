"""The small trained models that tests of mechanics run: coloured shapes, pictures of 128 px and 256 codes.

Tests that are about the embedded models, which another training may replace, name those instead.
"""

from pathlib import Path

DATA = Path(__file__).parent / "data"

SHAPES_JANUS = str(DATA / "shapes-janus")
"""A Janus model that paints, reads and counts one to four shapes."""

SHAPES_VL2 = str(DATA / "shapes-vl2")
"""A DeepSeek-VL2 model that reads and points in the same world, and compares two pictures."""
