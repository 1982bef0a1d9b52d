"""docs/training.md: its code prints what it says."""

import re
from pathlib import Path

PAGE = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text("utf-8")


def test_boxes_in_the_models_own_form(capsys) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    exec(code, {})
    assert capsys.readouterr().out.strip() == code.strip().splitlines()[-1].removeprefix("# ")
