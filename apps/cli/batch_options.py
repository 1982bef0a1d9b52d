"""The parsers of `bifrons batch` and its tasks; imports nothing heavy."""

from collections.abc import Callable
from typing import Any

from ..defaults import DEFAULT_GROUNDING_MODEL, DEFAULT_MODEL
from .options import add_exif, add_model, add_painting, image_options
from .text_parsers import add_drawing, text_options

_ROWS = {
    "paint": "prompt; id, seed, guidance_scale, temperature, top_k, top_p, negative_prompt if given",
    "ask": "image (a file beside the list, a data: URL or bytes) and question; id, seed and options below if "
    "given",
    "locate": "image (a file beside the list, a data: URL or bytes) and phrase; id if given",
}


def add_batch(commands: Any, command: Callable[..., Any], add_json: Callable[[Any], None]) -> None:
    """Add the parsers of `batch` and its tasks."""
    parser = command(
        commands, "batch", "paint, ask or locate for any number of rows, on all GPUs; restartable"
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    for name, text in (
        ("paint", "a picture for each row's prompt"),
        ("ask", "an answer for each row's picture and question"),
        ("locate", "boxes for each row's picture and phrase (DeepSeek-VL2)"),
    ):
        options = {"paint": image_options, "ask": text_options}.get(name)
        task = command(tasks, name, text, options)
        task.add_argument(
            "rows",
            metavar="ROWS",
            help="a .jsonl, .csv, .tsv (also .gz) or .parquet file, or a folder of Parquet; columns: "
            f"{_ROWS[name]}",
        )
        _add_run(task)
        add_model(task, DEFAULT_GROUNDING_MODEL if name == "locate" else DEFAULT_MODEL)
        if name != "paint":
            what = "question" if name == "ask" else "phrase"
            task.add_argument(f"--{what}", metavar="TEXT", help=f"the {what} of rows without one")
            add_exif(task)
        if name == "paint":
            add_painting(task)
        elif name == "ask":
            add_drawing(task, "an answer")
        add_json(task)


def _add_run(parser: Any) -> None:
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="a new folder, or that of the same command, which goes on with what is missing",
    )
    parser.add_argument(
        "--format",
        choices=("files", "webdataset", "parquet"),
        default="files",
        help="pictures as PNG files, or shards of WebDataset (.tar) or Parquet; rows/*.jsonl are written "
        "with each (default: files)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="from it and the row's id comes the seed of each row without one (default: 0)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes with a model (default: one a GPU, or what the CPU allows)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="workers on a Ray cluster, one a GPU: HOST:PORT, or auto for the one that this machine is in "
        "(needs bifrons[scale])",
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=512,
        metavar="N",
        help="rows of a shard of the output (default: 512)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="rows that a worker does together (default: 64, on a CPU 16)",
    )
