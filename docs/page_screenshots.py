"""Takes the screenshots of the page for the documentation: `python docs/page_screenshots.py PORT
SEED`, with chromium installed. SEED and the next one paint its two pictures.

It serves the embedded models and writes `demo-desktop.png` and `demo-find.png`, and two sheets with five
states each (empty, painting, done and checked, asked, found), in light and dark: `demo-states.png` and
`demo-phone.png`.
"""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from playwright.sync_api import Page as Tab

DOCS = Path(__file__).parent
SIZES = {"states": (1280, 1060), "phone": (390, 844)}
WIDTHS = {"states": 620, "phone": 300}
"""Of one screenshot in its sheet."""
_GAP = 12
_TIMEOUT_MS = 300_000


def shoot(tab: Tab, top: str | None = None) -> Image.Image:
    """What the window shows, once the page is at rest; with `top`, scrolled to that element."""
    if top is not None:
        tab.locator(top).evaluate(
            "element => window.scrollTo(0, element.getBoundingClientRect().top + scrollY - 8)"
        )
    tab.wait_for_timeout(1000)
    return Image.open(io.BytesIO(tab.screenshot())).convert("RGB")


def states(tab: Tab, phone: bool) -> list[Image.Image]:
    """The page empty, painting, done and checked, asked, found."""
    expect(tab.locator("#bf-examples button")).to_have_count(4)
    shots = [shoot(tab)]
    for field, value in (("#count input", "2"), ("#seed textarea, #seed input", sys.argv[2])):
        tab.fill(field, value)
    tab.fill("#prompt textarea", "three blue teddy bears")
    tab.keyboard.press("Enter")
    expect(tab.locator("#paint-status")).to_contain_text(re.compile(r"Painting: [56]\d%"))
    shots.append(shoot(tab))
    expect(tab.locator("#paint-status")).to_contain_text("painted")
    tab.click("#check")
    expect(tab.locator("#check-report")).to_contain_text("of 3 blue teddy bears")
    shots.append(shoot(tab, "#paint-status" if phone else None))
    tab.click("#ask-about")
    expect(tab.locator("#question .thumbnail-item")).to_have_count(1)
    tab.wait_for_timeout(1000)
    tab.fill("#question textarea", "How many teddy bears are there?")
    tab.keyboard.press("Enter")
    expect(tab.locator("#ask-status")).to_contain_text("answered")
    shots.append(shoot(tab, "[role=tablist]" if phone else None))
    tab.get_by_role("tab", name="Create").click()
    tab.click("#find-in")
    expect(tab.locator("#find-status")).to_contain_text("places")
    return [*shots, shoot(tab, "#find-status" if phone else None)]


def sheet(rows: list[list[Image.Image]], width: int) -> Image.Image:
    """The screenshots in rows, each of this width."""
    small = [[one.resize((width, one.height * width // one.width)) for one in row] for row in rows]
    height = small[0][0].height
    size = (len(rows[0]) * (width + _GAP) + _GAP, len(rows) * (height + _GAP) + _GAP)
    page = Image.new("RGB", size, (148, 163, 184))
    for y, row in enumerate(small):
        for x, one in enumerate(row):
            page.paste(one, (_GAP + x * (width + _GAP), _GAP + y * (height + _GAP)))
    return page


def save(image: Image.Image, name: str) -> None:
    """Write an image as a small PNG file."""
    small = image.quantize(256, kmeans=2, dither=Image.Dither.NONE)
    small.save(DOCS / f"{name}.png", optimize=True)


def take_all(browser: Browser, address: str) -> None:
    """Take and write all screenshots."""
    for name, (width, height) in SIZES.items():
        rows = []
        for scheme in ("light", "dark"):
            size = {"width": width, "height": height}
            tab = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
            tab.set_default_timeout(_TIMEOUT_MS)
            tab.goto(address)
            rows.append(states(tab, name == "phone"))
            tab.close()
        if name == "states":
            save(rows[0][2], "demo-desktop")
            save(rows[0][4], "demo-find")
        save(sheet(rows, WIDTHS[name]), f"demo-{name}")


def main() -> None:
    """Serve the page, take the screenshots, stop it."""
    command = [sys.executable, "-m", "bifrons.apps.cli.main", "demo", "--port", sys.argv[1], "--no-warmup"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    address = next(found[1] for line in server.stderr if (found := re.search(r"is at (\S+)", line)))
    expect.set_options(timeout=_TIMEOUT_MS)
    try:
        with sync_playwright() as playwright:
            path = shutil.which("chromium")
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
            take_all(browser, address)
            browser.close()
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
