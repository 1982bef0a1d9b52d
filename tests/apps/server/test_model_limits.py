"""Limits of requests follow the model; what is less than its own is said, with the option that changes it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from bifrons.apps.pipelines import load_pipeline
from bifrons.apps.server import limits
from bifrons.apps.server.errors import ApiError
from bifrons.apps.server.limits import Limits, ServerOptions
from bifrons.apps.server.registry import ModelRegistry
from bifrons.blocks.errors import OptionError
from bifrons.blocks.model.kv_cache import KVCache

OWN = 2048


@pytest.fixture(scope="module")
def pipes(janus_mini):
    folder = janus_mini.parent
    return {name: load_pipeline(str(folder / name), "cpu") for name in ("janus-mini", "vl2-mini-mla")}


@pytest.fixture
def limits_of(pipes, monkeypatch):
    """`limits_of(rows, name, own=..., free=..., sharing=..., **options)`: with a model of `own` positions,
    where `free` positions fit into memory."""

    def make(rows=32, name="janus-mini", own=OWN, free=10**9, sharing=1, **options) -> Limits:
        pipe = pipes[name]
        config = pipe.model.decoder.config
        size = KVCache.row_bytes(32, config.num_layers, config.cache_widths, pipe.dtype) // 32
        monkeypatch.setattr(limits, "rows_that_fit", lambda bytes_, *_: max(1, free * size // bytes_))
        monkeypatch.setattr(pipe.model.decoder, "config", replace(config, max_positions=own))
        return Limits(ServerOptions(**options), pipe, rows, sharing)

    return make


def refusal(function, *args) -> ApiError:
    with pytest.raises(ApiError) as refused:
        function(*args)
    assert refused.value.status == 400
    return refused.value


def test_the_context_is_the_models_own(limits_of):
    for own in (512, 4096, 16384):
        made = limits_of(own=own)
        assert (made.context, made.text) == (own, "the model's own context")
        assert made.new_tokens(100, None) == own - 100
        assert made.new_tokens(100, own - 100) == own - 100


@pytest.mark.parametrize(
    ("own", "free", "sharing", "context"),
    [
        (16384, 4 * 16384, 1, 16384),
        (16384, 4 * 16384 - 1, 1, 16128),
        (16384, 4 * 16384, 2, 8192),
        (16384, 4 * 5000, 1, 4864),
        (16384, 4 * 600, 1, 2048),
        (1000, 10, 1, 1000),
    ],
)
def test_the_context_is_shorter_where_memory_is_short(limits_of, own, free, sharing, context):
    made = limits_of(own=own, free=free, sharing=sharing)
    assert made.context == context
    assert ("memory is short" in made.text) == (context < own)
    assert (f"of the model's {own:,}" in made.text) == (context < own)
    assert limits_of(own=own, free=free, context=3000).context == min(own, 3000)


def test_a_prompt_that_exceeds_the_context_names_the_option(limits_of):
    made = limits_of(context=512)
    error = refusal(made.new_tokens, 600, None)
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    assert "holds 512" in error.message
    assert "of the model's 2,048; set by --context" in error.message
    assert "at most 412 new tokens fit" in refusal(made.new_tokens, 100, 413).message
    assert "the model's own context" in refusal(limits_of().new_tokens, 2048, 1).message


def test_new_tokens_have_an_option(limits_of):
    made = limits_of(max_new_tokens=50)
    assert [made.new_tokens(10, asked) for asked in (None, 1, 50)] == [50, 1, 50]
    assert made.new_tokens(OWN - 7, None) == 7
    error = refusal(made.new_tokens, 10, 51)
    assert (error.param, error.code) == ("max_tokens", "invalid_value")
    assert "up to 50 (--max-new-tokens)" in error.message
    assert "answers without max_tokens: up to 50" in made.startup_text


def test_answers_without_a_length_leave_room_for_others_in_a_pool(limits_of):
    """They take their memory when they start: with a long context there would be few at once."""
    made = limits_of(own=16384)
    for positions, expected in ((32 * 16384, 16284), (32 * 3000, 3000), (2 * 16384, 1024), (40, 512)):
        made.default_new_tokens = None
        made.share(SimpleNamespace(runner=SimpleNamespace(cache_bytes=positions * made._position_bytes)))
        assert made.new_tokens(100, None) == expected
        assert made.new_tokens(100, 16000) == 16000
        assert ("without max_tokens" in made.startup_text) == (expected < 16284)


@pytest.mark.parametrize("name", ["janus-mini", "vl2-mini-mla"])
def test_as_many_images_as_fit_into_the_context(limits_of, name):
    made = limits_of(name=name, context=500)
    fitting = 500 // made.image_tokens
    made.check_images(fitting)
    error = refusal(made.check_images, fitting + 1)
    assert (error.code, error.param) == ("too_many_images", "messages")
    assert f"at most {fitting} fit" in error.message
    assert "--context" in error.message
    few = limits_of(name=name, max_images=1)
    few.check_images(1)
    assert "at most 1 are accepted (--max-images)" in refusal(few.check_images, 2).message


def test_an_image_takes_as_many_tokens_as_that(pipes):
    from PIL import Image

    for name, pipe in pipes.items():
        parts = [{"type": "image", "image": Image.new("RGB", (9, 9))} for _ in range(3)]
        inputs = pipe.processor.chat_inputs([{"role": "user", "content": parts}])
        marks = 6 if name == "janus-mini" else 0
        assert int(inputs.image_mask.sum()) + marks == 3 * Limits(ServerOptions(), pipe, 4, 1).image_tokens


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"max_images": -1}, {"context": 63}])
def test_options_out_of_range(options):
    name = next(iter(options)).replace("_", "-")
    with pytest.raises(OptionError, match=name):
        ServerOptions(**options)


def test_what_is_less_is_said_at_the_start(janus_mini):
    registry = ModelRegistry(ServerOptions(rows=3, context=256, max_new_tokens=9))
    served = registry.load(str(janus_mini), "cpu", None)
    registry.open()
    registry.close()
    reason = "of the model's 2,048; set by --context; answers without max_tokens: up to 9"
    assert served.capacity == f"3 rows of up to 256 tokens ({reason})"
