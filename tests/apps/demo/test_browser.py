"""The page in a real browser: previews, questions, boxes, stopping, leaving, a bad upload, a phone."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from bifrons.blocks.image_io import text_chunks
from bifrons.nano.world.renderer import to_pil
from bifrons.nano.world.scene import Scene, SceneObject
from PIL import Image
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect, sync_playwright

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCENE = Scene(
    (SceneObject("star", "red", 0.3, 0.3, 0.3), SceneObject("star", "blue", 0.7, 0.6, 0.25)), (235, 230, 220)
)
SEED = "#seed textarea, #seed input"
TIMEOUT_MS = 60_000  # for any action on a busy machine

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
    pytest.mark.filterwarnings(r"ignore:::gradio\.queueing"),  # its use of pandas
]


@pytest.fixture(scope="module")
def tab(served) -> Iterator[Tab]:
    """A tab of the browser; nothing but the server may be asked for anything."""
    _, address = served
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        elsewhere: list[str] = []
        tab.on("request", lambda request: elsewhere.append(request.url))
        tab.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        tab.goto(address)
        yield tab
        browser.close()
    assert [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))] == []


def shoot(tab: Tab, name: str) -> None:
    """Keep a screenshot where BIFRONS_SCREENSHOTS names a folder for them."""
    if folder := os.environ.get("BIFRONS_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def sources(tab: Tab) -> list[str]:
    return tab.eval_on_selector_all("#gallery img", "images => images.map(image => image.src)")


def ask(tab: Tab, question: str) -> None:
    """Type as a person does: once more where the page, on a busy machine, has put its own text back since."""
    box = tab.locator("#question textarea")
    for _ in range(5):
        box.fill(question)
        tab.wait_for_timeout(500)
        if box.input_value() == question:
            break
    expect(box).to_have_value(question)
    tab.keyboard.press("Enter")


def violations(tab: Tab) -> dict[str, list[str]]:
    """What axe-core finds against WCAG 2.1, A and AA."""
    found = Axe().run(tab, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]})
    return {
        violation["id"]: [node["html"][:200] + node["failureSummary"] for node in violation["nodes"]]
        for violation in found.response["violations"]
    }


def test_generate_with_previews_then_ask(tab, tmp_path):
    expect(tab.get_by_text("shapes-janus").first).to_be_visible()
    tab.fill("#prompt textarea", "a photo of a red star and a blue circle")
    tab.fill("#count input[type=number]", "2")
    tab.fill(SEED, "9")
    tab.click("#paint")
    expect(tab.locator("#paint-status")).to_contain_text("left")
    previews = []
    while "painted" not in tab.inner_text("#paint-status"):
        images = sources(tab)
        if images and images not in previews:
            previews.append(images)
        if len(previews) == 6:
            shoot(tab, "painting")
        tab.wait_for_timeout(100)
    assert len(previews) >= 3
    expect(tab.locator("#details")).to_contain_text("Picture 1 of 2: seed 9")
    sentence = "a photo of a red star and a blue circle"
    for number, seed in enumerate((9, 10)):
        expect(tab.locator("#gallery img").nth(number)).to_have_attribute("alt", f"{sentence}, seed {seed}")

    tab.locator("#gallery .thumbnail-item").nth(1).click()
    expect(tab.locator("#details")).to_contain_text("Picture 2 of 2: seed 10")
    tab.keyboard.press("Escape")
    with tab.expect_download() as download:
        tab.click("#download")
    download.value.save_as(tmp_path / "downloaded.png")
    with Image.open(tmp_path / "downloaded.png") as image:
        assert text_chunks(image)["seed"] == "10"
    tab.click("#use-seed")
    expect(tab.locator(SEED)).to_have_value("10")
    shoot(tab, "painted")

    tab.click("#ask-about")
    expect(tab.locator("#question .thumbnail-item")).to_have_count(
        1
    )  # it also restores the text of the question
    ask(tab, "What color is the star?")
    expect(tab.locator("#ask-status")).to_contain_text("shapes-vl2 answered")
    expect(tab.locator("#chat .bot").last).to_contain_text(re.compile(r"\w"))
    expect(tab.locator("#chat .user img").first).to_be_visible()
    shoot(tab, "asked")


def test_the_first_view_has_examples_and_painted_pictures_stay(tab, served):
    tab.goto(served[1])
    tab.click("#bf-examples button:has-text('three green hearts')")
    expect(tab.locator("#prompt textarea")).to_have_value("three green hearts")
    expect(tab.locator(SEED)).to_have_value("12")
    tab.locator("#prompt textarea").press("Enter")
    expect(tab.locator("#paint-status")).to_contain_text("painted a picture")
    expect(tab.locator("#bf-examples")).to_be_hidden()
    (width,) = tab.eval_on_selector_all("#gallery img", "all => all.map(one => one.clientWidth)")
    assert width % 128 == 0
    tab.click("#check")
    expect(tab.locator("#check-report")).to_contain_text("of 3 green hearts")
    expect(tab.locator("#checked img")).to_have_attribute("alt", re.compile("of 3 green hearts"))
    assert violations(tab) == {}
    tab.click("#find-in")
    expect(tab.locator("#find-status")).to_contain_text("finds “the green hearts”")
    expect(tab.locator("#found img")).to_have_attribute("alt", re.compile("finds “the green hearts” in"))
    assert tab.locator("#found img").evaluate("image => [image.clientWidth, image.clientHeight]") == [
        384,
        384,
    ]
    assert violations(tab) == {}
    tab.reload()
    tab.locator("#bf-history button").first.click()
    expect(tab.locator("#prompt textarea")).to_have_value("three green hearts")
    expect(tab.locator(SEED)).to_have_value("12")
    expect(tab.locator("#details")).to_contain_text("seed 12")
    expect(tab.locator("#gallery img")).to_have_attribute("alt", "three green hearts, seed 12")
    tab.click("#check")
    expect(tab.locator("#check-report")).to_contain_text("of 3 green hearts")
    tab.click("#ask-about")
    expect(tab.locator("#question .thumbnail-item")).to_have_count(1)
    tab.get_by_role("tab", name="Create").click()
    tab.click("#random-seed")
    expect(tab.locator(SEED)).to_have_value("")
    tab.click("#bf-history .bf-clear")
    expect(tab.locator("#bf-history button")).to_have_count(0)
    tab.reload()
    expect(tab.locator("#bf-examples button")).to_have_count(4)
    expect(tab.locator("#bf-history button")).to_have_count(0)


def test_examples_of_ask_and_find_answer_at_once(tab, served):
    tab.goto(served[1])
    tab.get_by_role("tab", name="Ask").click()
    tab.click("#bf-ask-examples button:has-text('How many hearts')")
    expect(tab.locator("#ask-status")).to_contain_text("shapes-vl2 answered")
    expect(tab.locator("#chat .bot").last).to_contain_text("three")
    expect(tab.locator("#chat .user img").first).to_have_attribute("alt", "2-three-green-hearts")
    tab.get_by_role("tab", name="Find").click()
    tab.click("#bf-find-examples button:has-text('the red star')")
    expect(tab.locator("#find-status")).to_contain_text("finds “the red star” in one place")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(tab, served, scheme):
    """Axe-core finds nothing, and what has the focus shows it."""
    tab.emulate_media(color_scheme=scheme)
    tab.goto(served[1])
    for name, part in (("Create", "#paint"), ("Ask", "#question"), ("Find", "#find")):
        tab.get_by_role("tab", name=name).click()
        expect(tab.locator(part)).to_be_visible()
        assert violations(tab) == {}
        tab.keyboard.press("Tab")
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.emulate_media(color_scheme="light")


def test_a_bad_upload_is_reported_beside_the_question(tab, served, tmp_path):
    tab.goto(served[1])
    (tmp_path / "notes.png").write_text("this is no picture")
    tab.get_by_role("tab", name="Ask").click()
    tab.set_input_files("#question input[type=file]", tmp_path / "notes.png")
    expect(tab.locator("#question .thumbnail-item")).to_have_count(1)
    ask(tab, "What color is it?")
    alert = tab.locator("#ask-status [role=alert]")
    expect(alert).to_contain_text("'notes.png' is not a picture")
    expect(tab.locator("#question textarea")).to_have_value("What color is it?")
    expect(tab.locator("#question .thumbnail-item")).to_have_count(0)


def test_locate(tab, served, tmp_path):
    tab.goto(served[1])
    to_pil(SCENE, 128).save(tmp_path / "picture.png")
    (tmp_path / "notes.png").write_text("this is no picture")
    tab.get_by_role("tab", name="Find").click()
    tab.set_input_files("#find-picture input[type=file]", tmp_path / "notes.png")
    expect(tab.locator("#find-status [role=alert]")).to_contain_text("'notes.png' is not a picture")
    tab.set_input_files("#find-picture input[type=file]", tmp_path / "picture.png")
    expect(tab.locator("#find-status")).to_contain_text("say what to find")
    tab.fill("#phrase input, #phrase textarea", "the red star")
    tab.click("#find")
    expect(tab.locator("#find-status")).to_contain_text("in one place")
    expect(tab.locator("#found img")).to_be_visible()
    expect(tab.locator("#boxes")).to_contain_text("the red star")
    shoot(tab, "found")


def test_stop_ends_the_generation(tab, served, trained, monkeypatch):
    steps = []
    generate = trained[0].pipe.generate

    def counted(*given, callback, **settings):
        def count(step, total, codes):
            steps.append((step, total))
            callback(step, total, codes)

        return generate(*given, callback=count, **settings)

    monkeypatch.setattr(trained[0].pipe, "generate", counted)
    tab.goto(served[1])
    tab.get_by_role("tab", name="Create").click()
    tab.fill("#prompt textarea", "a photo of two stars")
    tab.fill("#count input[type=number]", "8")
    tab.fill(SEED, "3")
    tab.keyboard.press("Enter")
    expect(tab.locator("#paint-status")).to_contain_text("Painting:")
    tab.click("#stop-painting")
    expect(tab.locator("#paint-status")).to_contain_text("Stopped")
    expect(tab.locator("#paint")).to_be_enabled()
    assert len(served[0].jobs) == 0
    assert steps[-1][0] < steps[-1][1]


def test_leaving_the_page_ends_the_job(tab, served):
    tab.goto(served[1])
    tab.fill("#prompt textarea", "a photo of two stars")
    tab.click("#paint")
    expect(tab.locator("#paint-status")).to_contain_text("Painting:")
    (job,) = served[0].jobs._running.values()
    tab.goto("about:blank")
    job._thread.join(TIMEOUT_MS / 1000)
    assert not job.running
    assert job.result is None


def test_phones_need_no_horizontal_scrolling(tab, served):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(served[1])
    for name, part in (("Create", "#paint"), ("Ask", "#question"), ("Find", "#find")):
        tab.get_by_role("tab", name=name).click()
        expect(tab.locator(part)).to_be_visible()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        shoot(tab, f"phone-{name.lower()}")


def test_nothing_of_the_table_of_boxes_is_cut_on_a_phone(tab, served):
    tab.set_viewport_size({"width": 320, "height": 640})
    tab.goto(served[1])
    tab.get_by_role("tab", name="Find").click()
    tab.click("#bf-find-examples button:has-text('the green hearts')")
    expect(tab.locator("#boxes")).to_contain_text("bottom")
    wide = "every => every.filter(one => one.clientWidth && one.scrollWidth > one.clientWidth + 1).length"
    assert tab.locator("#boxes *").evaluate_all(wide) == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_view_of_a_phone_follows_the_work(tab, served):
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.goto(served[1])
    tab.fill("#prompt textarea", "a photo of two stars")
    tab.click("#paint")
    tab.wait_for_function("() => document.querySelector('#paint-status').getBoundingClientRect().top < 60")
    assert tab.locator("#paint-status").evaluate("one => one.getBoundingClientRect().top") >= 0
    tab.click("#stop-painting")
    expect(tab.locator("#paint-status")).to_contain_text("Stopped")
