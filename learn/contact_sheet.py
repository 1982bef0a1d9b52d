"""Samples of a run, pictures or answers, as one HTML page: a row for each step, a column for each prompt."""

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from ..blocks.errors import printable
from ..blocks.files import atomic_write, read_bounded
from ..blocks.image_io import write_png

PAGE, FOLDER = "samples.html", "samples"
LONGEST = 1000
"""Characters that are kept of an answer, and shown of a prompt."""
_NAME = re.compile(r"step-(\d+)-(\d+)\.(png|txt)")
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: Canvas; color: CanvasText;
       color-scheme: light dark }
table { border-collapse: collapse }
th { font-weight: 600; text-align: left; vertical-align: bottom; padding: .3rem .6rem; max-width: 12rem }
td { padding: .2rem; vertical-align: top }
p { margin: 0; padding: 0 .4rem; width: 20rem; white-space: pre-wrap; overflow-wrap: anywhere }
img { display: block; width: 12rem; image-rendering: auto }
"""


def add_samples(
    run: Path, step: int, samples: Sequence[Image.Image] | Sequence[str], prompts: Sequence[str]
) -> None:
    """Write the pictures or answers of a step, one a prompt, to `RUN/samples`, and the page
    `RUN/samples.html` anew."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for number, sample in enumerate(samples):
        suffix = "txt" if isinstance(sample, str) else "png"
        with atomic_write(folder / f"step-{step}-{number}.{suffix}", durable=False) as stream:
            if isinstance(sample, str):
                stream.write(_shortened(sample).encode())
            else:
                write_png(sample, stream)
    with atomic_write(run / PAGE, durable=False) as stream:
        stream.write(_page(run, prompts).encode())


def sampled_steps(run: Path) -> list[int]:
    """The steps with samples, in order."""
    names = (path.name for path in (run / FOLDER).iterdir()) if (run / FOLDER).is_dir() else ()
    return sorted({int(match[1]) for name in names if (match := _NAME.fullmatch(name))})


def _shortened(text: str) -> str:
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def _cell(run: Path, step: int, number: int, prompt: str) -> str:
    name = f"{FOLDER}/step-{step}-{number}"
    if (run / f"{name}.txt").is_file():
        return f"<td><p>{escape(read_bounded(run / f'{name}.txt', 16 * LONGEST).decode())}</p></td>"
    return f'<td><img src="{name}.png" alt="{escape(prompt)}, step {step}"></td>'


def _page(run: Path, prompts: Sequence[str]) -> str:
    prompts = list(map(_shortened, prompts))
    head = "".join(f'<th scope="col">{escape(prompt)}</th>' for prompt in prompts)
    rows = []
    for step in sampled_steps(run):
        cells = (_cell(run, step, number, prompt) for number, prompt in enumerate(prompts))
        rows.append(f'<tr><th scope="row">step {step:,}</th>{"".join(cells)}</tr>')
    title = f"Samples of {escape(run.name)}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n"
        f"<table><thead><tr><td></td>{head}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody></table></html>\n"
    )
