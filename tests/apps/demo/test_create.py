"""The tab *Create* beyond painting: seeds, previews, variations, the history, checking, finding."""

import html
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bifrons.apps.demo.gallery import open_painted, stored_settings
from bifrons.apps.demo.history import CLEAR, MAX_PICTURES, PaintedFiles, load_starters, valid_entries
from bifrons.apps.demo.image_form import STYLES, variations
from bifrons.blocks.checkpoints.hub import ModelFolder
from bifrons.blocks.image_io import open_image

from ...models import SHAPES_JANUS, SHAPES_VL2

REQUEST = SimpleNamespace(session_hash="me")


def seeds_of(files):
    return [stored_settings(file)["seed"] for file in files]


@pytest.fixture
def painted(page, paint):
    """The updates that end a painting of two pictures."""
    return list(paint())[-1]


@pytest.fixture
def shown(page, painted, form_values):
    """The inputs of a visitor who looks at the second of two pictures."""
    create = page.create
    return form_values | {create.files: painted[create.files], create.chosen: 1}


def test_two_presses_without_a_seed_give_two_pictures(page, paint):
    (first,), (second,) = (list(paint(seed="", count=1))[-1][page.create.files] for _ in range(2))
    assert seeds_of([first]) != seeds_of([second])


def test_a_seed_may_have_64_bits(page, paint):
    (file,) = list(paint(seed=str(2**64 - 1), count=1))[-1][page.create.files]
    assert seeds_of([file]) == [str(2**64 - 1)]


def test_a_style_is_added_for_models_of_all_words(page, paint):
    (file,) = list(paint(style="watercolor", count=1))[-1][page.create.files]
    assert stored_settings(file)["prompt"] == f"b, {STYLES['watercolor']}"


def test_all_settings_reach_the_picture(page, paint):
    changes = {"negative_prompt": "c", "top_k": 5, "top_p": 0.9, "temperature": 0.8}
    (file,) = list(paint(count=1, **changes))[-1][page.create.files]
    expected = {"negative_prompt": "c", "top_k": "5", "top_p": "0.9", "temperature": "0.8"}
    assert expected.items() <= stored_settings(file).items()


def test_again_paints_the_same_sentence_with_new_seeds(page, shown):
    create = page.create
    files = list(create.paint_again(shown, REQUEST))[-1][create.files]
    assert len(files) == 4
    assert {stored_settings(file)["prompt"] for file in files} == {"b"}
    assert not {"7", "8"} & set(seeds_of(files))


def test_variations_share_the_seed(page, shown):
    create = page.create
    stored = stored_settings(shown[create.files][1])
    files = list(create.paint_variations(shown, REQUEST))[-1][create.files]
    settings = [stored_settings(file) for file in files]
    assert {one["seed"] for one in settings} == {"8"}
    near = [(float(one["guidance_scale"]), float(one["temperature"])) for one in settings]
    assert near == [(options.guidance_scale, options.temperature) for _, options in variations(stored)]
    assert len(set(near)) == 4
    assert (2.0, 1.0) not in near


def test_painted_pictures_are_stored_in_the_browser(page, painted):
    create = page.create
    entries = painted[create.history.state]
    assert [entry["seed"] for entry in entries] == ["7", "8"]
    assert valid_entries(entries) == entries
    assert 'alt="b"' in painted[create.history.view]
    filled, form = create.use_stored(entries, SimpleNamespace(index=1), REQUEST), create.form
    assert (filled[form.prompt], filled[form.seed], filled[form.guidance]) == ("b", "8", 2.0)


def test_a_picture_of_the_list_is_shown_with_its_settings(page, painted):
    create = page.create
    entries = painted[create.history.state]
    shown = create.use_stored(entries, SimpleNamespace(index=1), REQUEST)
    assert shown[create.files] == [painted[create.files][1]]
    assert shown[create.gallery]["value"] == [(painted[create.files][1], "b, seed 8")]
    assert shown[create.gallery]["visible"] is shown[create.actions]["visible"] is True
    assert shown[create.starters.view]["visible"] is False
    assert shown[create.details].startswith("seed 8 · guidance 2.0")
    assert (
        shown[create.download]
        == {"value": shown[create.files][0], "interactive": True} | shown[create.download]
    )


def test_a_deleted_picture_of_the_list_is_shown_as_its_small_copy(page, painted):
    create = page.create
    entries = painted[create.history.state]
    Path(painted[create.files][0]).unlink()
    shown = create.use_stored(entries, SimpleNamespace(index=0), REQUEST)
    (file,) = shown[create.files]
    assert "the small copy in your browser" in shown[create.status]
    assert stored_settings(file)["seed"] == "7"
    assert open_image(file).size == open_image(entries[0]["image"]).size
    assert shown[create.download]["interactive"] is False
    assert (
        "deleted"
        in list(create.check.run([painted[create.files][0]], 0, REQUEST))[-1][create.check.report]["value"]
    )


def test_a_click_on_the_list_leaves_a_picture_in_work_on_view(page, painted, paint):
    create = page.create
    working = paint()
    next(working)
    filled = create.use_stored(painted[create.history.state], SimpleNamespace(index=0), REQUEST)
    assert filled[create.form.seed] == "7"
    assert create.gallery not in filled
    working.close()


def test_the_server_keeps_few_pictures(page, painted, tmp_path, monkeypatch):
    monkeypatch.setattr("bifrons.apps.demo.history._MOST_FILES", 2)
    files = PaintedFiles(tmp_path)
    paths = [Path(files.add(open_painted(painted[page.create.files][0]))) for _ in range(3)]
    assert [path.exists() for path in paths] == [False, True, True]
    assert files.find(paths[1].parent.name) == str(paths[1])
    assert files.find(paths[0].parent.name) is None


def test_the_list_of_pictures_can_be_cleared(page, painted):
    create = page.create
    assert f'data-index="{CLEAR}"' in painted[create.history.view]
    cleared = create.use_stored(painted[create.history.state], SimpleNamespace(index=CLEAR), REQUEST)
    assert (cleared[create.history.state], cleared[create.history.view]) == ([], "")


def test_what_a_browser_stores_is_checked(page, painted):
    (entry, _) = painted[page.create.history.state]
    bad = [
        {**entry, "image": 'x" onerror="alert(1)'},
        {**entry, "image": "https://example.com/a.png"},
        {**entry, "seed": "many"},
        {**entry, "prompt": "b" * 5000},
        {**entry, "more": "b"},
        {**entry, "file": "../../secret"},
        {**entry, "prompt": 3},
        {"prompt": "b"},
        "b",
    ]
    assert valid_entries(bad) == []
    assert valid_entries({"a": 1}) == valid_entries(None) == []
    assert len(valid_entries([entry] * 100)) == MAX_PICTURES
    shown = page.create.history.show([{**entry, "prompt": "<b>"}])[page.create.history.view]
    assert "<b>" not in shown
    gone = page.create.use_stored([entry], SimpleNamespace(index=4), REQUEST)
    assert "no longer listed" in gone[page.create.status]


def test_examples_are_those_of_the_models(page):
    assert all(entry.keys() == {"prompt"} for entry in page.create.examples)  # sentences, no pictures
    assert "<img" not in page.create.starters.view.value
    painter = replace(page.create.models[0], name="janus-nano")
    assert [entry["model"] for entry in load_starters([painter])] == ["janus-nano"] * 4
    chosen = page.create.use_example(SimpleNamespace(index=0))
    assert chosen[page.create.form.prompt] == page.create.examples[0]["prompt"]


def test_check_counts_what_the_sentence_asked_for(page, painted, paint, box_answers):
    create = page.create
    (file,) = list(paint(prompt="three red stars", count=1))[-1][create.files]
    report, boxes, _ = create.check.result
    last = list(create.check.run([file], 0, REQUEST))[-1]
    assert "✗</span> 2 of 3 red stars" in last[report]["value"]
    assert "counted by vl2-mini-mla" in last[report]["value"]
    assert open_image(last[boxes]["value"]).width >= 192


def test_check_by_a_model_without_boxes_asks_for_the_number(page_of, models, paint, page, monkeypatch):
    (file,) = list(paint(prompt="three red stars", count=1))[-1][page.create.files]
    alone = page_of(models[:1])
    monkeypatch.setattr(models[0].pipe, "chat", lambda *given, **settings: iter(["thr", "ee"]))
    check = alone.create.check
    assert "✓</span> 3 of 3 red stars" in list(check.run([file], 0, REQUEST))[-1][check.report]["value"]
    (file,) = list(paint(prompt="a star left of a circle", count=1))[-1][page.create.files]
    monkeypatch.setattr(models[0].pipe, "chat", lambda *given, **settings: iter(["No"]))
    assert (
        "✗</span> star left of circle: no" in list(check.run([file], 0, REQUEST))[-1][check.report]["value"]
    )
    monkeypatch.setattr(models[0].pipe, "chat", lambda *given, **settings: iter(["many"]))
    assert "gave no number" in list(check.run([file], 0, REQUEST))[-1][check.report]["value"]


def report_of(page, file):
    check = page.create.check
    said = list(check.run([file], 0, REQUEST))[-1][check.report]["value"]
    lines = re.sub(r"<[^>]*>", "\n", said).split("\n")
    return [html.unescape(line).strip() for line in lines if line.strip()]


def test_check_says_which_words_the_reader_does_not_know(page, paint, box_answers, monkeypatch):
    folder = ModelFolder("shapes", Path(SHAPES_VL2))
    source = replace(page.create.models[0].pipe.source, folder=folder)
    monkeypatch.setattr(page.models[1].pipe, "source", source)
    name = page.models[1].name

    def check(prompt):
        return report_of(page, list(paint(prompt=prompt, count=1))[-1][page.create.files][0])

    assert check("a cat") == ["?", f"1 cat asked for; {name} doesn't know 'cat'"]
    counted = f"counted by {name}, which may be wrong too"
    assert check("a big red star left of two dogs and no stars") == [
        *("✗", f"1 big red star asked for, 2 seen; counted as “red star”: {name} doesn't know 'big'"),
        *("?", f"2 dogs asked for; {name} doesn't know 'dogs'"),
        *("✗", "no stars asked for, 2 seen"),
        counted,
    ]


def test_check_looks_where_things_are(page, paint, models, monkeypatch):
    boxes = {
        "star": [[100, 100, 300, 300]],
        "circle": [[600, 110, 800, 310]],
        "heart": [[110, 120, 300, 310]],
    }

    def chat(messages, *given, **settings):
        (phrase,) = [phrase for phrase in boxes if phrase in str(messages)]
        return iter(f"<|ref|>{phrase}<|/ref|><|det|>{boxes[phrase]}<|/det|>")

    monkeypatch.setattr(models[1].pipe, "chat", chat)
    (file,) = list(paint(prompt="a star left of a circle and above a heart", count=1))[-1][page.create.files]
    assert report_of(page, file)[6:10] == [
        "✓",
        "star left of circle: yes",
        "?",
        "star above heart: that isn't clear",
    ]
    (file,) = list(paint(prompt="a star with a circle below it", count=1))[-1][page.create.files]
    assert report_of(page, file)[4:6] == ["✗", "circle below star: no"]


def test_check_leaves_out_the_words_of_a_style(page, paint, box_answers):
    (file,) = list(paint(prompt="two red stars", style="photograph", count=1))[-1][page.create.files]
    assert report_of(page, file)[:2] == ["✓", "2 of 2 red stars"]
    assert len(report_of(page, file)) == 3


def test_finding_in_a_painted_picture_begins_with_its_first_thing(page, paint):
    files = list(paint(prompt="a photo of a red star and a blue circle", count=1))[-1][page.create.files]
    updates = page.find_in(files, 0)
    assert updates[page.find.phrase] == "the red star"
    assert updates[page.find.upload] == files[0]


def test_unknown_words_are_named_below_the_status(page, paint, monkeypatch):
    folder = ModelFolder("shapes", Path(SHAPES_JANUS))
    source = replace(page.create.models[0].pipe.source, folder=folder)
    monkeypatch.setattr(page.create.models[0].pipe, "source", source)
    status = list(paint(prompt="a red cat", negative_prompt="a dog", count=1))[-1][page.create.status]
    assert "bf-note" in status
    assert "not: &#x27;cat&#x27;, &#x27;dog&#x27;</div>" in status
    assert "bf-note" not in list(paint(prompt="a red star", count=1))[-1][page.create.status]
