"""Loading only what a task takes, and what fits."""

import subprocess
import sys

import pytest
import torch
from bifrons import JanusPipeline, OptionError
from bifrons.blocks.placement import memory_budget
from bifrons.blocks.placement.memory_budget import batch_that_fits, size_text
from bifrons.janus.variants import image_generation_workload
from PIL import Image

PICTURE = Image.new("RGB", (50, 40), "teal")


def load(folder, **options) -> JanusPipeline:
    return JanusPipeline.from_pretrained(folder, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def pipes(janus_mini) -> dict[str, JanusPipeline]:
    return {parts: load(janus_mini, parts=parts) for parts in ("all", "paint", "read")}


def test_halves_do_what_the_whole_does(pipes):
    whole, paint, read = pipes["all"], pipes["paint"], pipes["read"]
    assert whole.generate("a", seed=1)[0].tobytes() == paint.generate("a", seed=1)[0].tobytes()
    assert whole.next_image_logits("a").equal(paint.next_image_logits("a"))
    assert whole.ask(PICTURE, "What?", max_new_tokens=5) == read.ask(PICTURE, "What?", max_new_tokens=5)
    names = {parts: {name for name, _ in pipe.model.named_parameters()} for parts, pipe in pipes.items()}
    shared = {name for name in names["all"] if name.startswith("language_model.model.")}
    assert names["paint"] & names["read"] == shared
    neither = names["all"] - names["paint"] - names["read"]
    assert {".".join(name.split(".")[:2]) for name in neither} == {
        "gen_vision_model.encoder",
        "gen_vision_model.quant_conv",
    }


USES = [
    ("paint", "read", lambda pipe: pipe.ask(PICTURE, "What?")),
    ("paint", "read", lambda pipe: pipe.ask([], "What?", max_new_tokens=1)),
    ("paint", "read", lambda pipe: list(pipe.ask([], "What?", stream=True))),
    ("paint", "read", lambda pipe: pipe.next_logits([{"role": "user", "content": "a"}])),
    ("paint", "all", lambda pipe: pipe.encode_image(PICTURE)),
    ("read", "paint", lambda pipe: pipe.generate("a")),
    ("read", "paint", lambda pipe: pipe.decode_codes([0] * 36)),
    ("read", "paint", lambda pipe: pipe.score_image("a", [0] * 36)),
    ("read", "paint", lambda pipe: pipe.next_image_logits("a")),
    ("read", "paint", lambda pipe: pipe.encode_image(PICTURE)),
]


@pytest.mark.parametrize("index", range(len(USES)))
def test_what_is_missing_says_so(pipes, index):
    parts, instead, use = USES[index]
    with pytest.raises(OptionError, match=f"was not loaded, as parts='{parts}' asks.*parts='{instead}'"):
        use(pipes[parts])


def test_no_choice_is_named_twice(pipes):
    with pytest.raises(OptionError, match=r"from_pretrained with parts='all'$"):
        pipes["paint"].encode_image(PICTURE)
    with pytest.raises(OptionError, match=r"from_pretrained with parts='all' or parts='read'$"):
        pipes["paint"].ask([], "What?")


def test_other_parts_are_refused(janus_mini):
    with pytest.raises(OptionError, match="parts is 'half'; accepted: all, paint, read"):
        load(janus_mini, parts="half")


def test_weights_that_do_not_fit_are_refused_before_loading(janus_mini, monkeypatch, pipes):
    needed = sum(p.numel() * 4 for p in pipes["all"].model.parameters())
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: needed)
    load(janus_mini)
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: needed - 1)
    text = f"needs {size_text(needed)} for its weights as float32 on cpu, where .*accepted: what fits"
    with pytest.raises(OptionError, match=text):
        load(janus_mini)
    load(janus_mini, parts="read")
    load(janus_mini, dtype="bfloat16")


def test_batches_use_what_is_free_and_no_more(pipes, monkeypatch):
    config, dtype = pipes["all"].model.config, torch.bfloat16
    work = image_generation_workload(config, True, 20)
    for free in (1, 10**6, 3 * 10**7, 10**9, 10**12):
        monkeypatch.setattr(memory_budget, "free_bytes", lambda device, free=free: free)
        count = batch_that_fits(work, torch.device("cuda"), dtype)

        def taken(count: int) -> int:
            return work.cache_bytes(count, dtype) + work.activation_bytes(count, dtype)

        assert count == 1 or taken(count) <= 0.8 * free
        assert taken(count + 1) > 0.8 * free
        assert batch_that_fits(work, torch.device("cpu"), dtype) == min(count, 64)


def test_pictures_do_not_depend_on_what_is_free(pipes, monkeypatch):
    pipe, rows = pipes["paint"], []
    whole = pipe.generate(["a", "b", "c"], seed=3, output_type="codes")
    work = image_generation_workload(pipe.model.config, True, len(pipe.processor.generation_ids("a")[0]))
    two = work.cache_bytes(2, pipe.dtype) + work.activation_bytes(2, pipe.dtype)
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: int(two / 0.8) + 8)
    forward = pipe.model.decoder.forward

    def watch(x_BTD, cache=None, from_start=False):
        rows.append(len(x_BTD))
        return forward(x_BTD, cache, from_start)

    monkeypatch.setattr(pipe.model.decoder, "forward", watch)
    assert pipe.generate(["a", "b", "c"], seed=3, output_type="codes").equal(whole)
    assert set(rows) == {4, 2}


def test_what_paints_is_loaded_without_slow_imports(janus_mini):
    """torch's compiler and timm take seconds."""
    code = (
        "import sys; from bifrons import JanusPipeline\n"
        f"JanusPipeline.from_pretrained({str(janus_mini)!r}, device='cpu', progress=False, parts='paint')\n"
        "sys.exit(bool({'torch._dynamo', 'timm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
