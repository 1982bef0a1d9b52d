"""The bounds in docs/security.md are those of the code."""

import re
from importlib import import_module
from pathlib import Path

import bifrons

PAGE = Path(bifrons.__file__).parent / "docs" / "security.md"
ROW = re.compile(r"^\| [^|]+ \| ([^|]+) \| `([\w/]+)\.py: ([\w.]+)` \|$", re.MULTILINE)


def test_bounds_are_those_of_the_code() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) >= 20
    for numbers, module, name in rows:
        value = import_module(f"bifrons.{module.replace('/', '.')}")
        for part in name.split("."):
            value = getattr(value, part)
        stated = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*", numbers)]
        assert stated == [value], f"{module}: {name} is {value}, the page says {numbers}"
