"""Settings of pictures, in either file of a model folder."""

import json

import pytest
from bifrons.blocks.errors import ConfigError
from bifrons.blocks.picture_settings import check_size, read_picture_settings

PRE, PRO = "preprocessor_config.json", "processor_config.json"


@pytest.fixture
def write(tmp_path):
    """`write(preprocessor, processor)`: a folder with these files, which None leaves out."""

    def make(preprocessor=None, processor=None):
        for name, content in ((PRE, preprocessor), (PRO, processor)):
            (tmp_path / name).unlink(missing_ok=True)
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_mean", [0.1, 0.2, 0.3]),
        ("min_size", 7),
        ("size", {"height": 96, "width": 96}),
        ("image_tag", "<x>"),
    ],
)
def test_a_setting_is_read_wherever_it_stands(write, name, value):
    other = {"processor_class": "X", name: None}
    for pre, pro in (
        ({name: value}, None),
        (None, {name: value}),
        (None, {"image_processor": {name: value}}),
        (other, {**other, "image_processor": {name: value}}),
        ({name: value}, {name: value, "image_processor": {name: value}}),
    ):
        assert read_picture_settings(write(pre, pro)).values == {name: value}


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("image_mean", [0.5, 0.5, 0.5], [0.4, 0.5, 0.5]),
        ("size", {"height": 96, "width": 96}, 384),
        ("min_size", 14, 0),
    ],
)
def test_contradictions_are_refused_by_the_names_of_both_files(write, name, value, other):
    nested = {"image_processor": {name: other}}
    with pytest.raises(ConfigError, match=rf"{name} is .* in {PRE}, but .* in {PRO}: image_processor"):
        read_picture_settings(write({name: value}, nested))
    with pytest.raises(ConfigError, match=rf"{name} is .* in {PRE}, but .* in {PRO}; accepted"):
        read_picture_settings(write({name: value}, {name: other}))
    with pytest.raises(ConfigError, match=rf"{name} is .* in {PRO}: image_processor, but .* in {PRO}; acc"):
        read_picture_settings(write(None, {name: value, **nested}))


def test_the_same_in_another_form_is_no_contradiction(write):
    nested = {"image_processor": {"size": {"height": 96, "width": 96}, "image_mean": [0, 0, 0]}}
    section = read_picture_settings(write({"size": 96, "image_mean": [0.0, 0.0, 0.0]}, nested))
    check_size(section, 96)


@pytest.mark.parametrize(
    "size", [384, {"height": 384, "width": 384}, {"height": 96, "width": 384}, {"x": 1}, "a"]
)
@pytest.mark.parametrize("name", ["size", "image_size"])
def test_another_size_is_refused_by_the_name_of_its_file(write, name, size):
    section = read_picture_settings(write(None, {"image_processor": {name: size}}))
    with pytest.raises(ConfigError, match=rf"^{PRO}: image_processor: pictures are .* takes 96$"):
        check_size(section, 96)


@pytest.mark.parametrize(
    "settings", [{"resample": 2}, {"do_rescale": False}, {"do_resize": False}, {"image_processor": [1]}]
)
def test_what_would_change_pixels_otherwise_is_refused(write, settings):
    nested = settings if "image_processor" in settings else {"image_processor": settings}
    with pytest.raises(ConfigError, match=rf"{PRO}: image_processor"):
        read_picture_settings(write(None, nested))
