"""The processes of a `PicturePool`, which decode pictures from strangers. Imports no torch.

Requests on stdin are pickled. Replies on stdout are not, since whoever takes over a decoder writes them: each
is a line of JSON, with the number of bytes that follow it.
"""

import ctypes
import json
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..blocks.errors import PictureError
from ..blocks.image_fit import Fit
from ..blocks.image_io import open_image, write_png

Reply = tuple[dict[str, Any], bytes]

_PR_SET_PDEATHSIG = 1


def read_picture(source: str | bytes, fit: Fit, limits: dict[str, Any]) -> Reply:
    """A picture fitted to a model: the fields of a `FittedImage`. `limits` are keywords of `open_image`."""
    fitted = fit(open_image(source, **limits))
    return {"shape": fitted.tiles.shape, "size": fitted.size}, fitted.tiles.tobytes()


def save_picture(
    source: str, target: str, draw: Callable[[Image.Image], Image.Image] | None, limits: dict[str, Any]
) -> Reply:
    """Write a picture as a new PNG file, changed by `draw` where it is given."""
    image = open_image(source, **limits)
    with Path(target).open("xb") as stream:
        write_png(image if draw is None else draw(image), stream)
    return {"size": image.size}, b""


def _confine(memory: int) -> None:
    """Bound what this process may take and outlive; where the system can't, the pool's time limit is left."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Handle requests until stdin ends; the argument is the memory that may be taken, in bytes."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    _confine(int(sys.argv[1]))
    while head := requests.read(8):
        try:
            function, args = pickle.loads(requests.read(int.from_bytes(head, "big")))
            fields, content = function(*args)
        except PictureError as error:
            fields, content = {"error": str(error)}, b""
        line = json.dumps({**fields, "bytes": len(content)})
        replies.write(line.encode() + b"\n" + content)
        replies.flush()


if __name__ == "__main__":
    main()
