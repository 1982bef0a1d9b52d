"""Which weights go where: maps are inferred and checked before anything is loaded."""

import pytest
import torch
from bifrons.apps.cli.options import parse_map, parse_memory
from bifrons.blocks.checkpoints.quantize import model_bytes
from bifrons.blocks.errors import OptionError
from bifrons.blocks.placement import auto_device_map, device_map, memory_budget
from bifrons.blocks.placement.auto_device_map import infer_placement, parse_max_memory
from bifrons.blocks.placement.device_map import choose_placement, parse_device_map, unit_bytes, units
from bifrons.blocks.placement.layout import CPU, DevicePlacement, longest_prefix
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.config import read_config as read_vl2_config
from bifrons.vl2.model import VL2Model
from bifrons.vl2.weight_names import keep_float32

GPU = [torch.device("cuda", number) for number in range(3)]
LAYERS = {f"model.layers.{number}": 100 for number in range(10)}
SIZES = {"model.embed": 50, **LAYERS, "head": 50, "tower": 200}


@pytest.fixture(scope="module")
def janus(janus_mini) -> JanusModel:
    with torch.device("meta"):
        return JanusModel(read_config(janus_mini)[0])


@pytest.fixture
def three_gpus(monkeypatch):
    """Three GPUs as far as names go, each with 1000 bytes free, and a machine with a million."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for module in (auto_device_map, device_map, memory_budget):
        monkeypatch.setattr(module, "free_bytes", lambda device: 1000 if device.type == "cuda" else 10**6)


def used(placement: DevicePlacement, sizes=SIZES) -> dict[str, int]:
    found: dict[str, int] = {}
    for unit, home in placement.devices.items():
        found[str(home)] = found.get(str(home), 0) + sizes[unit]
    return found


def test_what_fits_on_the_first_device_stays_together():
    assert not infer_placement("m", SIZES, {GPU[0]: 1300, GPU[1]: 9999, CPU: 9999}).uses_several_devices
    assert not infer_placement("m", SIZES, {CPU: 1300}).uses_several_devices


def test_gpus_are_filled_in_order_before_anything_lodges():
    placement = infer_placement("m", SIZES, {GPU[0]: 800, GPU[1]: 600, CPU: 9999})
    assert placement.main == GPU[0]
    assert not placement.offloaded
    assert used(placement) == {"cuda:0": 750, "cuda:1": 550}
    assert placement.device_of("model.layers.3.mlp.weight") == GPU[0] != placement.device_of("model.layers.8")
    without = infer_placement("m", SIZES, {GPU[0]: 800, GPU[1]: 600})  # what must not lodge may yet fit
    assert without == placement


def test_balanced_gives_gpus_about_as_much():
    memory = {GPU[0]: 2000, GPU[1]: 2000, GPU[2]: 2000, CPU: 9999}
    shares = used(infer_placement("m", SIZES, memory, balanced=True))
    assert set(shares) == {"cuda:0", "cuda:1", "cuda:2"}
    assert max(shares.values()) <= 600
    assert not infer_placement("m", SIZES, memory).uses_several_devices


def test_the_rest_lodges_and_room_is_left_for_it():
    placement = infer_placement("m", SIZES, {GPU[0]: 700, CPU: 1000})
    assert placement.main == GPU[0]
    assert "tower" in placement.offloaded  # which works once a picture, so it comes last
    assert "model.embed" not in placement.offloaded
    assert placement.peak_bytes(SIZES)[GPU[0]] <= 700
    assert placement.peak_bytes(SIZES)[CPU] == sum(SIZES[name] for name in placement.offloaded)
    assert {placement.execution_device(name) for name in SIZES} == {GPU[0]}


def test_a_gpu_with_room_for_the_largest_module_alone_computes_everything():
    placement = infer_placement("m", SIZES, {GPU[0]: 200, CPU: 9999})
    assert placement.main == GPU[0]
    assert placement.offloaded == frozenset(SIZES)


@pytest.mark.parametrize(
    "memory",
    [{CPU: 1299}, {GPU[0]: 199, CPU: 9999}, {GPU[0]: 500, CPU: 500}, {GPU[0]: 500, GPU[1]: 500}],
)
def test_what_does_not_fit_is_refused_with_the_sizes(memory):
    with pytest.raises(OptionError, match=r"m needs 1.3 kB for its weights.* on (cuda:0|cpu)"):
        infer_placement("m", SIZES, memory)


def test_units_cover_all_that_has_weights(janus, vl2_mini):
    names = units(janus)
    assert names[-1] == "gen_vision_model"
    assert "language_model.model.layers.0" in names
    assert all(longest_prefix(name, dict.fromkeys(names)) for name, _ in janus.named_parameters())
    sizes = unit_bytes(janus, torch.bfloat16, "int8")
    assert sum(sizes.values()) == model_bytes(janus, torch.bfloat16, "int8", lambda name: False)
    known = dict.fromkeys(units(vl2_mini))
    loose = [name for name, _ in vl2_mini.named_parameters() if not longest_prefix(name, known)]
    assert loose == ["image_newline", "view_seperator"]
    halves = [unit_bytes(vl2_mini, dtype, None, keep_float32) for dtype in (torch.float32, torch.bfloat16)]
    assert all(2 * halves[1][name] >= size > halves[1][name] for name, size in halves[0].items())


@pytest.fixture(scope="module")
def vl2_mini(janus_mini) -> VL2Model:
    with torch.device("meta"):
        return VL2Model(read_vl2_config(janus_mini.parent / "vl2-mini-noaux"))


def test_a_part_that_is_absent_has_no_place(janus_mini):
    with torch.device("meta"):
        model = JanusModel(read_config(janus_mini)[0], "read")
    assert not [name for name in units(model) if name.startswith("gen_")]


def test_maps_of_modules(janus, three_gpus):
    inside = "language_model.model"
    given = {"": 0, f"{inside}.layers": "cuda:1", f"{inside}.layers.0": "2", "vision_model": "cpu"}
    placement = parse_device_map(janus, given)
    assert placement.main == GPU[0]
    assert placement.device_of(f"{inside}.layers.0.mlp.up_proj.weight") == GPU[2]
    assert placement.device_of(f"{inside}.layers.1") == GPU[1]
    assert placement.device_of(f"{inside}.norm.weight") == GPU[0]
    assert placement.offloaded == {"vision_model"}
    assert placement.execution_device("vision_model") == GPU[0]
    assert set(str(placement).split(" and ")) == {"cuda:0", "cuda:1", "cuda:2", "cpu"}
    assert parse_device_map(janus, {"": "cpu"}) == DevicePlacement(CPU, dict.fromkeys(units(janus), CPU))
    first = parse_device_map(janus, {"": "cpu", f"{inside}.layers.1": 1})
    assert first.main == GPU[1]
    assert f"{inside}.embed_tokens" in first.offloaded


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"": 0, "towel": "cpu"}, r"names 'towel'; accepted: '' for everything, aligner.*layers"),
        ({"": 0, "language_model.model.layers.0.mlp": 0}, "names 'language_model.model.layers.0.mlp'"),
        ({"": "disk"}, r"is 'disk', but weights are not offloaded to files; accepted: cpu, 0, 1, 2"),
        ({"": 3}, r"the device of '' is 3.*this machine has 3 CUDA GPUs; accepted: cpu, 0, 1, 2"),
        ({"": "gpu"}, "the device of '' is 'gpu'"),
        ({"": "meta"}, "holds no numbers"),
        ({"": None}, "is None; accepted: cpu"),
        ({"": True}, "is True; accepted: cpu"),
        ({"language_model": 0}, r"has no place for gen_aligner.*accepted: a map that covers all"),
    ],
)
def test_maps_that_are_refused(janus, three_gpus, given, words):
    with pytest.raises(OptionError, match=words):
        parse_device_map(janus, given)


def test_memory_that_is_allowed(three_gpus):
    assert parse_max_memory({"cpu": "1GiB", 1: "2MB", "0": 77}) == {
        GPU[0]: 77,
        GPU[1]: 2 * 10**6,
        CPU: 2**30,
    }
    assert list(parse_max_memory({"cpu": 5, 1: 5, 0: 0})) == [GPU[1], CPU]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({0: "much"}, "max_memory for cuda:0 is 'much'; accepted: bytes, or a size such as 20GiB"),
        ({0: 1.5}, "is 1.5; accepted"),
        ({0: True}, "is True; accepted"),
        ({0: -1}, "is -1; accepted: bytes"),
        ({7: "1GB"}, "a device of max_memory is 7"),
        ({"disk": "1GB"}, "not offloaded to files"),
        ({0: 5, "cuda:0": 5}, "names cuda:0 twice"),
        ({"cpu": 0}, "allows nothing"),
        (5, "max_memory is 5; accepted: such as"),
    ],
)
def test_memory_that_is_refused(three_gpus, given, words):
    with pytest.raises(OptionError, match=words):
        parse_max_memory(given)


def pick(model, **how):
    given = {"device": None, "dtype": None, "capture": None, "kind": None}
    return choose_placement("m", model, **{**given, **how})


def test_options_that_do_not_go_together(janus, three_gpus, monkeypatch):
    for how, words in (
        ({"max_memory": {"cpu": 5}}, "max_memory has no device_map"),
        ({"device_map": "auto", "device": "cpu"}, "device is 'cpu' and there is a device_map too"),
        ({"device_map": {"": "cpu"}, "max_memory": {"cpu": 5}}, "a device_map of modules"),
        ({"device_map": "sequential"}, "device_map is 'sequential'; accepted: auto, balanced, or modules"),
        ({"device_map": 0}, "device_map is 0; accepted: auto"),
        ({"device_map": {"": "cpu"}, "capture": True}, "accepted with CUDA alone"),
    ):
        with pytest.raises(OptionError, match=words):
            pick(janus, **how)
    with pytest.raises(OptionError, match=r"m as bfloat16 would take .* of cuda:0, where 1 kB are free"):
        pick(janus, device_map={"": 0})
    monkeypatch.setattr(device_map, "free_bytes", lambda device: 10**12)
    with pytest.raises(OptionError, match="capture is True, but the model is spread over cuda:0 and cpu"):
        pick(janus, device_map={"": 0, "vision_model": "cpu"}, capture=True)
    placement, dtype = pick(janus, device_map={"": 1}, capture=True)
    assert (placement.uses_several_devices, placement.main, dtype) == (False, GPU[1], torch.bfloat16)


def test_auto_goes_by_what_is_free(janus, three_gpus, monkeypatch):
    total = model_bytes(janus, torch.bfloat16, None, lambda name: False)
    for module in (auto_device_map, device_map):
        monkeypatch.setattr(module, "free_bytes", lambda d: total * 6 // 5 if d.type == "cuda" else 10**9)
    placement, dtype = pick(janus, device_map="auto")  # 0.8 of the first do not do
    assert dtype == torch.bfloat16
    assert placement.uses_several_devices
    assert {home.type for home in placement.devices.values()} == {"cuda"}
    placement, _ = pick(janus, device_map="auto", max_memory={0: total - 1, "cpu": "1GB"})
    assert placement.main == GPU[0]
    assert "gen_vision_model" in placement.offloaded


def test_the_refusal_without_a_map_names_it(janus, monkeypatch):
    monkeypatch.setattr(memory_budget, "free_bytes", lambda device: 1000)
    with pytest.raises(OptionError, match=r'what fits .*, or device_map="auto" \(--device-map auto\)'):
        pick(janus, device="cpu")


def test_auto_on_the_cpu_is_the_plain_model(janus_mini):
    pipe = JanusPipeline.from_pretrained(janus_mini, device_map="auto", max_memory={"cpu": "1GiB"})
    assert pipe.model.decoder.layout is None
    assert pipe.device == CPU
    with pytest.raises(OptionError, match=r"janus-mini as float32 needs .* may take 1 kB on cpu"):
        JanusPipeline.from_pretrained(janus_mini, device_map="auto", max_memory={"cpu": 1000})


def test_the_command_lines_forms(bifrons_main, janus_mini, capsys):
    assert parse_map("auto") == "auto"
    assert parse_map("=0, vision_model = cpu") == {"": "0", "vision_model": "cpu"}
    assert parse_map('{"": "cpu"}') == {"": "cpu"}
    assert parse_memory("0=20GiB,cpu=60GiB") == {"0": "20GiB", "cpu": "60GiB"}
    for text in ("0:5", "0=", "0=1,0=2", "{0"):
        with pytest.raises(OptionError, match="max-memory is"):
            parse_memory(text)
    assert bifrons_main("ask", "-m", janus_mini, "--device-map", "=cpu", "--max-new-tokens", 2, "Hello?") == 0
    refused = ("--device-map", "auto", "--max-memory", "cpu=1kB")
    assert bifrons_main("ask", "-m", janus_mini, *refused, "Hello?") == 2
    assert "needs" in capsys.readouterr().err
