"""Pictures painted during a run as one HTML page: a row for each step, a column for each prompt."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from ..blocks.files import atomic_write
from ..blocks.image_io import write_png

PAGE, FOLDER = "samples.html", "samples"
_NAME = re.compile(r"step-(\d+)-(\d+)\.png")
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: Canvas; color: CanvasText;
       color-scheme: light dark }
table { border-collapse: collapse }
th { font-weight: 600; text-align: left; vertical-align: bottom; padding: .3rem .6rem; max-width: 12rem }
td { padding: .2rem }
img { display: block; width: 12rem; image-rendering: auto }
"""


def add_samples(run: Path, step: int, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    """Write the pictures of a step, one a prompt, to `RUN/samples`, and the page `RUN/samples.html` anew."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(pictures):
        with atomic_write(folder / f"step-{step}-{number}.png", durable=False) as stream:
            write_png(picture, stream)
    with atomic_write(run / PAGE, durable=False) as stream:
        stream.write(_page(run, prompts).encode())


def sampled_steps(run: Path) -> list[int]:
    """The steps with pictures, in order."""
    names = (path.name for path in (run / FOLDER).glob("*.png"))
    return sorted({int(match[1]) for name in names if (match := _NAME.fullmatch(name))})


def _page(run: Path, prompts: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(prompt)}</th>' for prompt in prompts)
    rows = []
    for step in sampled_steps(run):
        cells = (
            f'<td><img src="{FOLDER}/step-{step}-{number}.png" alt="{escape(prompt)}, step {step}"></td>'
            for number, prompt in enumerate(prompts)
        )
        rows.append(f'<tr><th scope="row">step {step:,}</th>{"".join(cells)}</tr>')
    title = f"Samples of {escape(run.name)}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n"
        f"<table><thead><tr><td></td>{head}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table></html>\n"
    )
