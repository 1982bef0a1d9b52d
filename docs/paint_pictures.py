"""Paints the pictures of the README and of the page's first view: `python docs/paint_pictures.py`.

The embedded model paints them, the first sentence with seed 1, the second with 2, and so on; where the
world's learned detector does not see what the sentence asks for and nothing else, it goes on with other
seeds. It writes `docs/strip.png` and `apps/demo/examples`, which keep their settings.
"""

from pathlib import Path

from bifrons import JanusPipeline
from bifrons.apps.demo.suggestions import sentences
from bifrons.apps.files import slug
from bifrons.eval.geneval.detectors import as_row
from bifrons.eval.nano.janus import Prompt
from bifrons.nano.world.reading import read_request
from bifrons.nano.world.requests import to_row
from bifrons.nano.world.things_detector import load_detector
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "apps" / "demo" / "examples"
MORE = ("two pink sheep", "four yellow birds")
"""What the strip shows beside the page's examples."""
_ATTEMPTS = 12
_GAP = 8  # pixels


def painted(pipe: JanusPipeline, texts: list[str]) -> list[Image.Image]:
    """A picture of each sentence. Ends where a sentence has no good one of any seed."""
    detector = load_detector()
    good: dict[str, Image.Image] = {}
    for attempt in range(_ATTEMPTS):
        left = [text for text in texts if text not in good]
        if not left:
            break
        seeds = [1 + texts.index(text) + attempt * len(texts) for text in left]
        pictures = pipe.generate(left, seed=seeds)
        assert isinstance(pictures, list)
        for text, seed, picture, seen in zip(
            left, seeds, pictures, detector.detect_all(pictures), strict=True
        ):
            prompt, found = Prompt("match", to_row(read_request(text), "match", text)), as_row(seen)
            if prompt.judge(found)[0] and prompt.is_all(found):
                good[text] = picture
                print(f"{text}: seed {seed}")
    if missing := [text for text in texts if text not in good]:
        raise SystemExit(f"none of {_ATTEMPTS} seeds paints: {'; '.join(missing)}")
    return [good[text] for text in texts]


def main() -> None:
    """Write all pictures."""
    pipe = JanusPipeline.from_pretrained("janus-nano")
    shown = sentences(pipe.vocabulary)
    pictures = painted(pipe, [*shown, *MORE])
    for old in EXAMPLES.glob("*.png"):
        old.unlink()
    for number, (text, picture) in enumerate(zip(shown, pictures, strict=False), 1):
        picture.save(EXAMPLES / f"{number}-{slug(text.removeprefix('a photo of '))}.png")
    side = pictures[0].width + _GAP
    strip = Image.new("RGBA", (len(pictures) * side - _GAP, pictures[0].height))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * side, 0))
    strip.save(ROOT / "docs" / "strip.png", optimize=True)


if __name__ == "__main__":
    main()
