"""A model that is spread over devices says what it says on one.

Here is no second device: weights rest on the CPU and are there for the time of their work only, and GPUs are
torch's fake ones, which know no numbers but refuse to compute across devices. Real GPUs: test_spreading_cuda.
"""

import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import accelerate.hooks
import pytest
import torch
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids
from bifrons.blocks.checkpoints.quantize import decoder_name, replace_with_quantized
from bifrons.blocks.engine.generate import captures
from bifrons.blocks.engine.prefill import decode_one, prefill
from bifrons.blocks.engine.request import Request, SamplingParams, TokenHead
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.model.context import DecoderConfig, DeviceLayout
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.model.kv_slots import KVSlots
from bifrons.blocks.placement import loading, memory_budget, offload
from bifrons.blocks.placement.device_map import units
from bifrons.blocks.placement.layout import CPU, DevicePlacement, offloaded_units
from bifrons.blocks.placement.memory_budget import batch_over_devices, batch_that_fits, rows_that_fit
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel
from bifrons.janus.pipeline import JanusPipeline
from bifrons.janus.variants import image_generation_workload
from bifrons.vl2.config import read_config as read_vl2_config
from bifrons.vl2.model import VL2Model
from bifrons.vl2.pipeline import VL2Pipeline
from safetensors.torch import save_file
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = [torch.device("cuda", number) for number in range(2)]
FAMILIES = {"Janus": JanusPipeline, "VL2": VL2Pipeline}


def load_lodging(monkeypatch, family: str, folder, stays=(), **how):
    """A pipeline on the CPU whose units, but those in `stays`, lodge there."""
    pipeline = FAMILIES[family]

    def lodge(name, model, *, dtype, **_):
        names = units(model)
        return DevicePlacement(
            CPU, dict.fromkeys(names, CPU), frozenset(names) - {*stays}
        ), dtype or torch.float32

    with monkeypatch.context() as patch:
        patch.setattr(loading, "choose_placement", lodge)
        return pipeline.from_pretrained(folder, **how)


def resting(pipe) -> set[str]:
    """Names of the units whose weights are away."""
    tensors = [*pipe.model.named_parameters(), *pipe.model.named_buffers()]
    found = {name: {t.is_meta for n, t in tensors if n.startswith(f"{name}.")} for name in units(pipe.model)}
    assert all(len(kinds) == 1 for kinds in found.values())
    return {name for name, kinds in found.items() if kinds == {True}}


@pytest.fixture
def picture(parity_picture):
    return parity_picture(1, 50, 40)


def test_janus_nano_paints_and_answers_the_same(monkeypatch, picture):
    plain = JanusPipeline.from_pretrained("janus-nano", "cpu")
    away = load_lodging(monkeypatch, "Janus", "janus-nano", stays=["language_model.model.layers.0"])
    names = set(units(away.model)) - {"language_model.model.layers.0"}
    assert resting(away) == names
    painted = [pipe.generate("a red star", seed=3, output_type="codes") for pipe in (plain, away)]
    assert torch.equal(*painted)
    assert plain.decode_codes(painted[0])[0].tobytes() == away.decode_codes(painted[0])[0].tobytes()
    question = "What color is the star?"
    assert plain.ask(picture, question, 8) == away.ask(picture, question, 8)
    assert resting(away) == names


@pytest.mark.parametrize("quantize", [None, "int8", "int4", "fp8"])
def test_janus_does_all_its_work_the_same(monkeypatch, janus_mini, picture, quantize):
    plain = JanusPipeline.from_pretrained(janus_mini, "cpu", quantize=quantize)
    away = load_lodging(monkeypatch, "Janus", janus_mini, quantize=quantize)
    messages = plain.question_messages(picture, "What is it?")
    codes = plain.encode_image(picture)

    def work(pipe: JanusPipeline) -> list:
        return [
            pipe.encode_image(picture),
            pipe.generate(["a star", "two hearts"], 2, seed=1, output_type="codes"),
            pipe.next_logits(messages),
            pipe.next_logits(messages, prefill_chunk=7),
            pipe.next_image_logits("a star"),
            pipe.score_text(messages, "a star"),
            pipe.score_image("a star", codes),
        ]

    assert all(torch.equal(a, b) for a, b in zip(work(plain), work(away), strict=True))
    streams = ["".join(pipe.ask(picture, "What?", 6, stream=True)) for pipe in (plain, away)]
    assert streams[0] == streams[1]
    assert (away.device, away.dtype) == (CPU, torch.float32)
    assert resting(away) == set(units(away.model))


@pytest.mark.parametrize("kind", ["mha", "mla", "noaux"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4", "fp8"])
def test_vl2_answers_the_same(monkeypatch, janus_mini, picture, kind, quantize):
    folder = janus_mini.parent / f"vl2-mini-{kind}"
    plain = VL2Pipeline.from_pretrained(folder, "cpu", quantize=quantize)
    away = load_lodging(monkeypatch, "VL2", folder, quantize=quantize)
    assert plain.ask(picture, "What is it?", 8) == away.ask(picture, "What is it?", 8)
    messages = plain.question_messages(picture, "What is it?")
    assert torch.equal(plain.next_logits(messages), away.next_logits(messages))
    assert resting(away) == set(units(away.model))
    assert not away.model.image_newline.is_meta


def test_weights_leave_after_a_failure_too(monkeypatch, janus_mini):
    away = load_lodging(monkeypatch, "Janus", janus_mini)
    with pytest.raises(RuntimeError):
        away.model.decoder.layers[0](torch.zeros(1, 2, 3), None)
    assert resting(away) == set(units(away.model))


def test_captured_steps_are_off(monkeypatch, janus_mini):
    away = load_lodging(monkeypatch, "Janus", janus_mini, capture=True)  # which `choose_placement` refuses
    assert not captures(away.model.decoder, TokenHead(away.model.embed_text, away.model.text_logits))


def test_the_engine_serves_a_spread_model(monkeypatch, janus_mini):
    away = load_lodging(monkeypatch, "Janus", janus_mini)
    text = TokenHead(away.model.embed_text, away.model.text_logits)
    questions = [away.question_messages([], words) for words in ("Hello?", "What is it like?", "Why?")]
    prompts = away.prompts(questions, 1)
    scheduler = Scheduler(away.model.decoder, rows=2, context=128, max_waiting=9)
    heard: list[list[int]] = [[] for _ in prompts]
    ends = [threading.Event() for _ in prompts]
    try:
        scheduler.reserve(len(prompts))
        requests = [
            Request(
                text,
                [prompt.embeddings_TD],
                SamplingParams(1.0),
                5,
                6,
                lambda choice, i=i: heard[i].append(choice.token),
                lambda reason, i=i: ends[i].set(),
            )
            for i, prompt in enumerate(prompts)
        ]
        scheduler.submit(requests)
        for _ in range(20):  # beside it, as a server prepares prompts
            away.model.embed_text(torch.arange(9))
        assert all(end.wait(30) for end in ends)
    finally:
        assert scheduler.close(10)
    plain = JanusPipeline.from_pretrained(janus_mini, "cpu")
    for prompt, tokens in zip(prompts, heard, strict=True):
        assert tokens == generate_ids(plain.model, [prompt], TextGenerationOptions(6, 1.0), [5], -1)[0]


def test_a_cache_in_layers_is_the_cache():
    config = read_config(Path(__file__).parent.parent.parent / "data" / "janus-mini")[0].decoder

    def fill(layer_devices) -> list:
        decoder = Decoder(config)
        if layer_devices is not None:
            decoder.layout = DeviceLayout(CPU, tuple(layer_devices), 0)
        slots = KVSlots(decoder, 4, 40)
        torch.manual_seed(0)
        slots.add([5, 9, 7])
        view = slots.view(0, 3, 9)
        for layer in range(config.num_layers):
            value = torch.randn(3, 9, config.num_kv_heads, config.head_dim)
            placement = torch.arange(9).expand(3, 9)
            view.write(layer, placement, (value, value + 1))
        slots.copy([(0, 1, 4), (1, 2, 5)])
        slots.drop(0)
        return [buffer[layer] for buffer in slots.cache.buffers for layer in range(config.num_layers)]

    layers = [CPU] * config.num_layers
    assert all(torch.equal(a, b) for a, b in zip(fill(None), fill(layers), strict=True))


# --- fake GPUs -------------------------------------------------------------------------------------------


@pytest.fixture
def fake_gpus(monkeypatch):
    """Tensors of GPUs without numbers. No kernels of Triton, no real streams."""
    if torch.cuda.is_available():
        pytest.skip("real GPUs are there")

    @contextmanager
    def current(device):
        yield

    def put(module, name, device, value=None, **_):  # accelerate's makes a parameter by its type
        *path, leaf = name.split(".")
        module = module.get_submodule(".".join(path))
        there = (getattr(module, leaf) if value is None else value).to(device)
        if leaf in module._parameters:
            there = torch.nn.Parameter(there, requires_grad=False)
            module._parameters[leaf] = there
        else:
            module._buffers[leaf] = there

    monkeypatch.setattr(offload, "_current", current)
    for user in (offload, accelerate.hooks):
        monkeypatch.setattr(user, "set_module_tensor_to_device", put)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: False)
    return FakeTensorMode(allow_non_fake_inputs=True)


def place(model, placement: DevicePlacement) -> None:
    """What loading does: every tensor to its home."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        path, _, leaf = name.rpartition(".")
        parent = model.get_submodule(path)
        there = torch.empty(tensor.shape, dtype=tensor.dtype, device=placement.device_of(name))
        if leaf in parent._parameters:
            parent._parameters[leaf] = torch.nn.Parameter(there, requires_grad=False)
        else:
            parent._buffers[leaf] = there
    offload.attach_hooks(model.eval(), placement)


def over_gpus(model) -> DevicePlacement:
    """Half of the layers on one GPU, the others and the head on the other; the eye and a layer lodge."""
    homes = dict.fromkeys(units(model), GPU[0])
    inside = decoder_name(model)
    count = len(model.decoder.layers)
    for number in range(count // 2, count):
        homes[f"{inside}.layers.{number}"] = GPU[1]
    homes[f"{inside}.norm"] = GPU[1]
    homes[inside.replace(".model", ".lm_head")] = GPU[1]
    homes[f"{inside}.layers.0"] = CPU
    for name in model.per_image_modules:
        homes[name] = CPU
    return DevicePlacement(GPU[0], homes, offloaded_units(homes, GPU[0]))


def make(name: str):
    folder = Path(__file__).parent.parent.parent / "data" / name
    with torch.device("meta"):
        if name == "janus-mini":
            return JanusModel(read_config(folder)[0])
        return VL2Model(read_vl2_config(folder))


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("name", ["janus-mini", "vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def test_nothing_is_computed_across_devices(fake_gpus, name, kind):
    model = make(name)
    if kind is not None:
        replace_with_quantized(model, kind)
    with fake_gpus, torch.no_grad():
        place(model, over_gpus(model))
        decoder = model.decoder
        assert decoder.device == GPU[0]
        rows = [model.embed_text(torch.arange(length, device=GPU[0])) for length in (5, 9)]
        cache = decoder.new_cache(2, 12)
        assert {cache.buffers[0][layer].device for layer in range(len(decoder.layers))} == {*GPU}
        hidden = prefill(decoder, rows, cache, chunk=4)
        hidden = decode_one(decoder, hidden, cache)
        assert hidden.device == GPU[0]
        assert model.text_logits(hidden).device == GPU[0]
        assert decoder(rows[0][None]).device == GPU[0]
        side = model.config.vision.image_size
        pixels = torch.empty(2, 3, side, side, device=GPU[0])
        if name == "janus-mini":
            assert model.embed_images(pixels).device == GPU[0]
            codes = model.gen_vision_model.encode(pixels)
            assert codes.device == GPU[0]
            assert model.gen_vision_model.decode(codes, model.config.grid).device == GPU[0]
            assert model.image_logits(hidden).device == model.embed_codes(codes).device == GPU[0]
        else:
            assert model.embed_images(pixels, [(1, 1)])[0].device == GPU[0]
        slots = KVSlots(decoder, 3, 16)
        slots.add([4, 4])
        prefill(decoder, [rows[0][:4]] * 2, slots.view(0, 2, 4))
        decode_one(decoder, hidden, slots.active())
        slots.drop(0)


def test_the_fake_gpus_would_notice(fake_gpus):
    model = make("janus-mini")
    with fake_gpus, torch.no_grad():
        place(model, over_gpus(model))
        rows = [model.embed_text(torch.arange(4, device=GPU[0]))]
        # Not with its layers:
        cache = model.decoder.config.new_cache(1, 9, device=GPU[0], dtype=torch.float32)
        with pytest.raises(RuntimeError, match="device"):
            prefill(model.decoder, rows, cache)


def test_batches_go_by_the_fullest_device(monkeypatch, janus_mini):
    config = read_config(janus_mini)[0]
    work = image_generation_workload(config, True)
    each = work.cache_bytes(1, torch.bfloat16)
    free = {GPU[0]: 200 * each, GPU[1]: 200 * each}
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: free[device])
    alone = batch_that_fits(work, GPU[0], torch.bfloat16)
    both = batch_over_devices(work, DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0), torch.bfloat16)
    assert alone < both <= 2 * alone + 1
    assert batch_over_devices(work, DeviceLayout(GPU[0], (GPU[0], GPU[1]), 100 * each), torch.bfloat16) < both
    free[GPU[1]] = each
    assert batch_over_devices(work, DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0), torch.bfloat16) == 1


def test_rows_of_an_engine_go_by_the_fullest_device(monkeypatch):
    free = {GPU[0]: 1000, GPU[1]: 1000}
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: free[device])
    assert rows_that_fit(8, GPU[0]) == 100
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0)) == 200
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[0], GPU[1]), 500)) == 100
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[1], GPU[1]), 500)) == 100
    free[GPU[1]] = 0
    assert rows_that_fit(8, GPU[0], DeviceLayout(GPU[0], (GPU[0], GPU[1]), 0)) == 1


MEMORY = """
import re, sys, torch
from pathlib import Path
from torch import nn
from bifrons.blocks.checkpoints.key_mapping import ParameterSlice
from bifrons.blocks.checkpoints.loader import load_weights
from bifrons.blocks.model.context import DecoderConfig
from bifrons.blocks.model.decoder import Decoder
from bifrons.blocks.placement.layout import CPU, DevicePlacement
from bifrons.blocks.placement.device_map import units
from bifrons.blocks.placement.offload import attach_hooks
with torch.device("meta"):
    model = nn.ModuleDict({"model": Decoder(DecoderConfig(64, 1024, 4096, 8, 8, 8))})
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
names = units(model)
placement = DevicePlacement(CPU, dict.fromkeys(names, CPU), frozenset(names))
before = peak()
load_weights(model, Path(sys.argv[1]), ParameterSlice, device=placement.device_of, dtype=torch.bfloat16)
attach_hooks(model, placement)
with torch.no_grad():
    model["model"](torch.zeros(1, 2, 1024, dtype=torch.bfloat16))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_of_loading_and_computing_peaks_near_the_files_size(tmp_path):
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"model": Decoder(DecoderConfig(64, 1024, 4096, 8, 8, 8))})
    state = {name: torch.full(w.shape, 0.01, dtype=torch.bfloat16) for name, w in model.named_parameters()}
    save_file(state, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert 0.9 < int(run.stdout) / (tmp_path / "model.safetensors").stat().st_size < 1.3
