"""`--device-map` and `--max-memory`."""

import pytest
from bifrons.apps.cli.options import parse_device_map, parse_max_memory
from bifrons.blocks.errors import OptionError


def test_syntax_on_the_command_line(bifrons_main, janus_mini, capsys):
    assert parse_device_map("auto") == "auto"
    assert parse_device_map("=0, vision_model = cpu") == {"": "0", "vision_model": "cpu"}
    assert parse_device_map('{"": "cpu"}') == {"": "cpu"}
    assert parse_max_memory("0=20GiB,cpu=60GiB") == {"0": "20GiB", "cpu": "60GiB"}
    for text in ("0:5", "0=", "0=1,0=2", "{0"):
        with pytest.raises(OptionError, match="max-memory is"):
            parse_max_memory(text)
    assert bifrons_main("ask", "-m", janus_mini, "--device-map", "=cpu", "--max-new-tokens", 2, "Hello?") == 0
    refused = ("--device-map", "auto", "--max-memory", "cpu=1kB")
    assert bifrons_main("ask", "-m", janus_mini, *refused, "Hello?") == 1
    assert "needs" in capsys.readouterr().err
