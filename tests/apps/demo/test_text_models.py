"""The page with a text model: no pictures, thoughts apart from answers and limited."""

from types import SimpleNamespace

import pytest
from bifrons.apps.demo.conversation import shown_thought
from bifrons.apps.demo.models import LoadedModel, load_models
from playwright.sync_api import expect, sync_playwright

from ...transformers_text import make_folder
from .conftest import launched
from .test_browser import CHROMIUM, FLAGS, TIMEOUT_MS, violations
from .test_browser import ask as ask_in_browser

REQUEST = SimpleNamespace(session_hash="me")


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory) -> LoadedModel:
    folder, _ = make_folder(tmp_path_factory.mktemp("text") / "r1-tiny", "qwen2")
    return load_models([str(folder)], "cpu")[0]


def ask(page, model, thinking, seed, tokens=12, conversation=None, files=()):
    value = {"text": "what is the sum?", "files": list(files)}
    return page.ask.answer(model, value, conversation, 0.6, tokens, thinking, seed, REQUEST)


def test_a_page_of_a_text_model_has_no_pictures(reasoner, page_of):
    page = page_of([reasoner])
    assert (page.create, page.find) == (None, None)
    assert page.ask.box.sources == []
    assert not page.ask.tries.view.visible
    assert page.ask.settings.thinking.visible
    assert page.ask.settings.temperature.value == 0.6
    assert page.ask.settings.tokens.maximum == 512  # half of its context


def test_the_thought_is_a_message_of_its_own(reasoner, page_of):
    page = page_of([reasoner])
    updates = list(ask(page, "r1-tiny", "4", "3"))
    last = updates[-1]
    messages = [{"role": "user", "content": "what is the sum?"}]
    text = reasoner.pipe.chat(messages, 12, 0.6, 0.95, 3, max_thinking_tokens=4, stream=True)
    thought, _, answer = "".join(text).partition("</think>")
    assert [m.get("metadata", {}).get("title") for m in last[page.ask.chat]] == [None, "Thought", None]
    assert [m["content"] for m in last[page.ask.chat][1:]] == [thought.strip(), answer.strip()]
    assert "r1-tiny answered" in last[page.ask.status]
    again = list(ask(page, "r1-tiny", "4", "3", conversation=last[page.ask.conversation]))[-1]
    assert len(again[page.ask.chat]) == 6
    cut = list(ask(page, "r1-tiny", "", "3", tokens=2))[-1]
    assert "The thought was cut off" in cut[page.ask.status]
    for thinking, seed, word in (("x", "", "longest thought is 'x'"), ("", "-1", "seed is '-1'")):
        refused = list(ask(page, "r1-tiny", thinking, seed))[-1]
        assert word.replace("'", "&#x27;") in refused[page.ask.status]


def test_a_thought_in_progress():
    """The mark of its end is never shown, and what may become it is held back."""
    titles = [m.get("metadata", {}).get("title") for m in shown_thought("so 2 </thi", True, False)]
    assert titles == ["Thinking"]
    assert shown_thought("so 2 </thi", True, False)[0]["content"] == "so 2"
    assert shown_thought("so 2 </thi", True, True)[0]["metadata"]["status"] == "done"
    both = shown_thought("so 2</think>\n\n2", True, False)
    assert [m["content"] for m in both] == ["so 2", "2"]
    assert shown_thought("2", False, True) == [{"role": "assistant", "content": "2"}]


def test_the_choice_of_a_model_changes_what_it_takes(reasoner, models, page_of, star):
    page = page_of([*models, reasoner])
    chosen, back = page.ask.use_model("r1-tiny"), page.ask.use_model("janus-mini")
    assert chosen[page.ask.box]["sources"] == []
    assert back[page.ask.box]["sources"] == ["upload"]
    assert (chosen[page.ask.settings.thinking]["visible"], back[page.ask.settings.thinking]["visible"]) == (
        True,
        False,
    )
    refused = list(ask(page, "r1-tiny", "", "", files=[star]))[-1]
    assert "reads no pictures" in refused[page.ask.status]
    empty = {"text": "", "files": []}
    assert page.ask_about([star], 0, empty, "r1-tiny")[page.ask.model] == "janus-mini"
    assert page.ask.model not in page.ask_about([star], 0, empty, "vl2-mini-mla")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
@pytest.mark.filterwarnings(r"ignore:::gradio\.queueing")
def test_a_thought_unfolds_in_a_browser(reasoner, tmp_path):
    """By its button, also with the keyboard; the page stays accessible."""
    with (
        launched([reasoner], tmp_path / "pictures", tmp_path / "cache") as (_, address),
        sync_playwright() as pw,
    ):
        browser = pw.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(TIMEOUT_MS)
        tab.goto(address)
        tab.get_by_role("button", name="Settings").last.click()
        tab.fill("#thinking textarea, #thinking input", "8")
        tab.fill("#ask-seed textarea, #ask-seed input", "3")
        tab.get_by_label("number input for Longest answer").fill("24")
        ask_in_browser(tab, "what is the sum?")
        tab.get_by_text("r1-tiny answered").wait_for()
        folded = tab.locator("#chat .thought-group .content")
        expect(folded).to_have_count(0)
        tab.get_by_role("button", name="show or hide the thought").press("Enter")
        folded.wait_for()
        tab.wait_for_timeout(500)  # until it has unfolded
        assert violations(tab) == {}
        browser.close()
