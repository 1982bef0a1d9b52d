"""Event handlers of the page, called without a browser, on small random checkpoints of both families."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bifrons.apps.demo.components import error_status, queue_status, seconds, status_html
from bifrons.apps.demo.history import load_examples
from bifrons.apps.demo.image_form import MAX_PICTURES
from bifrons.apps.demo.jobs import Waiting
from bifrons.apps.demo.models import embedded_models, find_model, load_models
from bifrons.apps.demo.suggestions import phrase_of, question_about
from bifrons.blocks.chat.text_generation import TextGenerationOptions
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.blocks.image_io import open_image, text_chunks
from bifrons.janus.image_generation import ImageGenerationOptions
from PIL import Image

REQUEST = SimpleNamespace(session_hash="me")


@pytest.fixture
def not_an_image(tmp_path) -> str:
    path = tmp_path / "notes.png"
    path.write_text("this is no picture")
    return str(path)


def ask(page, text, files=(), conversation=None, tokens=8, model="janus-mini", thinking=None):
    return page.ask.answer(
        model, {"text": text, "files": list(files)}, conversation, 0.0, tokens, thinking, None, REQUEST
    )


def test_tabs_depend_on_what_the_models_can_do(models, page_of):
    janus, vl2 = models
    both, reads, paints = (page_of(some) for some in (models, [vl2], [janus]))
    offers = [(page.create is not None, page.find is not None) for page in (both, reads, paints)]
    assert offers == [(True, True), (False, True), (True, False)]
    assert [loaded.name for loaded in both.create.models] == ["janus-mini"]
    assert [loaded.name for loaded in both.find.models] == ["vl2-mini-mla"]
    assert [loaded.name for loaded in both.ask.models] == ["vl2-mini-mla", "janus-mini"]


def test_defaults_are_those_of_the_option_classes(page, models):
    assert page.create.form.guidance.value == models[0].pipe.guidance_scale
    assert page.create.form.temperature.value == ImageGenerationOptions.temperature
    assert page.ask.settings.temperature.value == TextGenerationOptions.temperature
    assert page.ask.settings.tokens.value == TextGenerationOptions.max_new_tokens


def test_an_embedded_model_is_labelled():
    assert "janus-nano" in embedded_models()
    assert "embedded demonstration model" in load_models(["janus-nano"], "cpu")[0].headline


def test_duplicate_and_unknown_model_names_are_refused(models, tmp_path, janus_mini):
    (tmp_path / "janus-mini").symlink_to(janus_mini)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "janus-mini").mkdir()
    with pytest.raises(OptionError, match="two models are called janus-mini"):
        load_models([str(janus_mini), str(tmp_path / "elsewhere" / ".." / "janus-mini")], "cpu")
    with pytest.raises(OptionError, match="accepted: janus-mini, vl2-mini-mla"):
        find_model(models, "janus-nano")


def test_painting_shows_progress_previews_and_pictures(page, paint, models):
    create = page.create
    updates = list(paint())
    previews = [u[create.gallery]["value"] for u in updates[1:-1] if create.gallery in u]
    assert previews
    assert all(len(preview) == 2 for preview in previews)
    last = updates[-1]
    files = last[create.files]
    expected = models[0].pipe.generate("b", 2, 7, guidance_scale=2.0)
    for file, picture, seed in zip(files, expected, ("7", "8"), strict=True):
        assert open_image(file).tobytes() == picture.tobytes()
        with Image.open(file) as image:
            settings = text_chunks(image)
        expected_settings = {"prompt": "b", "seed": seed, "guidance_scale": "2.0", "model": "janus-mini"}
        assert expected_settings.items() <= settings.items()
    assert create.use_seed(files, 1) == "8"
    assert page.ask_about(files, 1, {"text": "What", "files": []}, "janus-mini")[page.ask.box]["value"] == {
        "text": "What",
        "files": [files[1]],
    }
    chosen = create.choose(files, SimpleNamespace(index=1))
    assert chosen[create.download] == files[1]
    assert "Picture 2 of 2: seed 8" in chosen[create.details]
    list(paint(count=1, seed="1", before=files))
    assert all(Path(file).exists() for file in files)  # the history shows them


def test_stop_ends_the_generation(page, paint, models, monkeypatch):
    steps = []
    generate = models[0].pipe.generate

    def counted(*given, callback, **settings):
        def count(step, total, codes):
            steps.append((step, total))
            callback(step, total, codes)

        return generate(*given, callback=count, **settings)

    monkeypatch.setattr(models[0].pipe, "generate", counted)
    updates = paint(count=8)
    for update in updates:
        if "Painting:" in update.get(page.create.status, ""):
            page.create.stop(REQUEST)
            break
    (last,) = list(updates)[-1:]
    assert "Stopped" in last[page.create.status]
    assert last[page.create.run_button]["interactive"] is True
    assert len(page.jobs) == 0
    assert steps[-1][0] < steps[-1][1]


def test_stop_before_the_generation_begins(page, paint):
    updates = paint()
    next(updates)
    page.create.stop(REQUEST)
    (last,) = updates
    assert "Stopped" in last[page.create.status]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "  "}, "sentence is empty"),
        ({"seed": "-1"}, "seed is &#x27;-1&#x27;"),
        ({"guidance": -2.0}, "Guidance_scale"),
        ({"count": MAX_PICTURES + 1}, f"{MAX_PICTURES}"),
        ({"model": "vl2-mini-mla"}, "accepted: janus-mini"),
    ],
)
def test_invalid_input_for_generation_is_reported(page, paint, given, message):
    last = list(paint(**given))[-1]
    assert message in last[page.create.status]
    assert 'role="alert"' in last[page.create.status]
    assert last[page.create.run_button]["interactive"] is True


def test_a_conversation_continues(page, models, star):
    pipe = models[0].pipe
    first = list(ask(page, "what?", [star, star]))[-1]
    answer = pipe.ask([star, star], "what?", 8)
    conversation = first[page.ask.conversation]
    assert conversation.messages[-1] == {"role": "assistant", "content": answer}
    assert first[page.ask.chat][0]["content"] == [{"path": star}, {"path": star}, "what?"]
    assert "janus-mini answered" in first[page.ask.status]
    second = list(ask(page, "and now?", conversation=conversation))[-1]
    messages = [*conversation.messages, {"role": "user", "content": "and now?"}]
    assert second[page.ask.conversation].messages[-1]["content"] == pipe.chat(messages, 8)
    assert len(second[page.ask.chat]) == 4


def test_a_streamed_answer_can_be_stopped(page, star):
    updates = ask(page, "what?", [star], tokens=300)
    for update in updates:
        if "is writing" in update.get(page.ask.status, ""):
            page.ask.stop(REQUEST)
            break
    last = list(updates)[-1]
    assert "Stopped" in last[page.ask.status]
    answer = last[page.ask.conversation].messages[-1]["content"]
    assert last[page.ask.chat][-1]["content"].strip() == answer
    assert len(page.jobs) == 0


def test_after_a_bad_upload_the_question_is_restored(page, star, not_an_image):
    last = list(ask(page, "what?", [star, not_an_image]))[-1]
    assert "notes.png" in last[page.ask.status]
    assert "is not a picture" in last[page.ask.status]
    assert str(Path(not_an_image).parent) not in last[page.ask.status]
    assert last[page.ask.box]["value"] == {"text": "what?", "files": [star]}


@pytest.mark.parametrize(
    ("text", "count", "message"), [(" ", 1, "question is empty"), ("what?", 7, "up to 6")]
)
def test_invalid_questions_are_reported(page, star, text, count, message):
    last = list(ask(page, text, [star] * count))[-1]
    assert message in last[page.ask.status]


def test_located_boxes_are_drawn_and_listed(page, star, box_answers):
    find = page.find
    last = list(find.find("vl2-mini-mla", star, "the star", REQUEST))[-1]
    assert last[find.table]["value"] == [["the star", 20, 10, 100, 50], ["the star", 0, 0, 19, 9]]
    assert open_image(find.look(star)[find.drawn]["value"]).getpixel((60, 50)) == (250, 20, 20)
    assert open_image(last[find.drawn]["value"]).getpixel((60, 50)) != (250, 20, 20)
    assert "2 places" in last[find.status]


def test_boxes_in_an_answer_are_drawn(page, star, box_answers):
    last = list(ask(page, "where?", [star], model="vl2-mini-mla"))[-1]
    text, picture = last[page.ask.chat][-1]["content"]
    assert text == "the star"
    assert open_image(picture["path"]).size == (200, 100)


def test_an_answer_without_boxes_is_reported(page, star, models, monkeypatch):
    monkeypatch.setattr(models[1].pipe, "chat", lambda *given, **settings: iter(["no <b>idea</b>"]))
    last = list(page.find.find("vl2-mini-mla", star, "the star", REQUEST))[-1]
    assert "finds no “the star”" in last[page.find.status]
    assert "no &lt;b&gt;idea" in last[page.find.status]


def test_invalid_input_for_locating_is_reported(page, star, not_an_image):
    find = page.find
    for file, phrase, message in ((None, "x", "no picture"), (star, " ", "phrase is empty")):
        assert message in list(find.find("vl2-mini-mla", file, phrase, REQUEST))[-1][find.status]
    deep = Path(not_an_image).parent / ("a" * 120)  # as deep as Gradio's folders: errors shorten such names
    deep.mkdir()
    refused = find.look(str(Path(not_an_image).rename(deep / "notes.png")))
    assert refused[find.upload] is None
    assert "&#x27;notes.png&#x27; is not a picture" in refused[find.status]


def test_the_removal_of_a_picture_hides_what_was_found(page):
    find = page.find
    cleared = find.clear()
    assert (cleared[find.drawn]["visible"], cleared[find.table]["visible"]) == (False, False)
    assert "Add a picture" in cleared[find.status]


def test_examples_of_the_other_tabs(page, models):
    ask, find = page.ask, page.find
    first, second, *_ = load_examples()
    chosen = ask.use_example(SimpleNamespace(index=1))
    assert chosen == {"text": question_about(second["prompt"]), "files": [second["file"]]}
    updates = find.use_example(SimpleNamespace(index=0))
    assert updates[find.phrase] == phrase_of(first["prompt"])
    assert open_image(updates[find.drawn]["value"]).size == (384, 384)  # a whole multiple
    with pytest.raises(BifronsError, match="no longer listed"):
        find.use_example(SimpleNamespace(index=9))


@pytest.mark.parametrize(
    ("method", "accepted"), [("generate", "fewer pictures"), ("chat", "fewer pictures or")]
)
def test_a_lack_of_memory_is_explained(page, paint, models, star, monkeypatch, method, accepted):
    def fail(*given, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(models[0].pipe, method, fail)
    if method == "generate":
        last = list(paint())[-1]
        status = last[page.create.status]
        assert last[page.create.run_button]["interactive"] is True
    else:
        status = list(ask(page, "what?", [star]))[-1][page.ask.status]
    assert 'role="alert"' in status
    assert accepted in status


def test_unexpected_errors_are_reported_and_logged(caplog):
    status = error_status(KeyError("oops"))
    assert "KeyError" in status
    assert "no fault of yours" in status
    assert "oops" in caplog.text


def test_status_texts():
    assert (seconds(0.2), seconds(61.6), seconds(200)) == ("1 s", "62 s", "3 min")
    assert "2 other jobs first" in queue_status(Waiting(2))
    assert "<script>" not in status_html("<script>")
    assert "width:50.0%" in status_html("half", 0.5)


def test_a_port_in_use_is_refused(page):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port}.*accepted: a free --port"):
            page.launch("127.0.0.1", port)


def test_invalid_options_of_the_command_are_refused(refused, failed):
    assert "port is 70000" in refused("demo", "--port", "70000")
    assert "no-such-model" in failed("demo", "-m", "no-such-model")  # exit status 1: found out at work
