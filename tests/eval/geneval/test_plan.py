"""How many prompts a difference needs."""

import pytest
from bifrons.apps.cli.main import main
from bifrons.blocks.errors import OptionError
from bifrons.eval.geneval.plan import needed_prompts


def test_by_hand():
    """(1.96 + 0.8416)^2 (0.25 + 0.24) / 0.1^2 for one picture a prompt."""
    assert needed_prompts(0.1, 0.5, 1) == 385
    assert needed_prompts(0.1, 0.5, 4, agreement=1) == 385
    assert needed_prompts(0.1, 0.5, 4, agreement=0) == 97
    assert needed_prompts(0.1, 0.5, 1, shared=0.5) < 200
    with pytest.raises(OptionError, match="difference"):
        needed_prompts(0.9, 0.5)


def test_command(capsys: pytest.CaptureFixture[str]):
    assert main(["eval", "plan", "10", "--score", "0.5", "--images-per-prompt", "1"]) == 0
    assert "385 prompts, 385 pictures" in capsys.readouterr().out
    assert main(["eval", "plan", "1", "--score", "0.5", "--power", "0.5"]) == 0
    assert capsys.readouterr().out.startswith("a difference of 1 point is seen")
