"""The arguments of `bifrons demo`; imports nothing heavy."""

from collections.abc import Callable
from typing import Any

from .options import add_loading

DEFAULT_PORT = 7860


def add_demo(commands: Any, command: Callable[..., Any]) -> None:
    """Add the command to the parser; `command(commands, name, text)` makes a command's parser."""
    parser = command(commands, "demo", "open a web page to paint, ask and find")
    parser.add_argument(
        "-m",
        "--model",
        nargs="+",
        action="extend",
        metavar="MODEL",
        help="folders, hub ids or embedded models (default: the embedded models)",
    )
    add_loading(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 for the whole network (default: 127.0.0.1, this machine)"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"(default: {DEFAULT_PORT})")
    parser.add_argument(
        "--share", action="store_true", help="also at a public address, through a tunnel of Gradio's makers"
    )
