"""Folders whose large weights are stored in int8: smaller files that load as plain weights."""

import json
from pathlib import Path

import pytest
import torch
from bifrons import CheckpointError, JanusPipeline, VL2Pipeline
from bifrons.apps.cli.main import main
from bifrons.blocks.checkpoints.reader import list_tensors
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "data"
ASKED = [{"role": "user", "content": "What is this?"}]
MODELS = {"janus-mini": JanusPipeline, "vl2-mini-noaux": VL2Pipeline}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("stored") / name for name in MODELS}
    for name, folder in folders.items():
        assert main(["convert", str(DATA / name), str(folder), "--store-int8"]) == 0
    return folders


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_plain_once_loaded_and_off_by_half_a_step(stored, name):
    plain, pipe = (MODELS[name].from_pretrained(folder, "cpu") for folder in (DATA / name, stored[name]))
    assert pipe.quantization is None
    files = load_file(stored[name] / "model.safetensors")
    int8 = {key for key, tensor in files.items() if tensor.dtype == torch.int8}
    assert len(int8) > 5
    expected, found = plain.model.state_dict(), pipe.model.state_dict()
    assert {key: t.dtype for key, t in found.items()} == {key: t.dtype for key, t in expected.items()}
    changed = 0
    for key, tensor in expected.items():
        error = (found[key] - tensor).abs().flatten(1) if tensor.ndim > 1 else (found[key] - tensor).abs()
        if error.any():
            changed += 1
            # Half a step, and what the rounding of the scale to bfloat16 takes from the largest number.
            assert (error <= tensor.abs().flatten(1).amax(1, keepdim=True) * (0.5 / 127 + 2**-8)).all(), key
    assert changed >= len(int8) * 0.75  # experts are stacked


def test_next_tokens_agree(stored):
    folders = (DATA / "janus-mini", stored["janus-mini"])
    a, b = (JanusPipeline.from_pretrained(f, "cpu").next_logits(ASKED).log_softmax(-1) for f in folders)
    assert 0 < (a.exp() * (a - b)).sum() < 0.01


def test_what_is_written_and_what_is_not(stored):
    entries = list_tensors(stored["janus-mini"])
    before = list_tensors(DATA / "janus-mini")
    assert entries.keys() == before.keys()
    assert all(entries[key].shape == entry.shape for key, entry in before.items())
    kept = [key for key, entry in entries.items() if entry.dtype == torch.bfloat16]
    assert "gen_vision_model.quantize.embedding.weight" in kept
    assert any("norm" in key for key in kept)
    size = {key: (folder / "model.safetensors").stat().st_size for key, folder in stored.items()}
    assert size["janus-mini"] < 0.75 * (DATA / "janus-mini" / "model.safetensors").stat().st_size


def test_pictures_are_those_of_the_plain_weights(stored, tmp_path, bifrons_main):
    """Converted back, the folder holds the same weights in bfloat16, as `dtype="auto"` loads them."""
    assert bifrons_main("convert", stored["janus-mini"], tmp_path / "plain") == 0
    written = load_file(tmp_path / "plain" / "model.safetensors")
    assert not any(tensor.dtype == torch.int8 or "scale_inv" in key for key, tensor in written.items())
    one, other = (
        JanusPipeline.from_pretrained(folder, "cpu", "auto")
        for folder in (stored["janus-mini"], tmp_path / "plain")
    )
    assert one.dtype == other.dtype == torch.bfloat16
    assert all(torch.equal(t, other.model.state_dict()[key]) for key, t in one.model.state_dict().items())
    pipe = JanusPipeline.from_pretrained(stored["janus-mini"], "cpu")
    codes = [pipe.generate("a cat", seed=1, output_type="codes", speculate=how) for how in (False, 8)]
    assert torch.equal(*codes)


def test_a_stored_folder_is_quantized_as_others_are(stored, tmp_path, bifrons_main, capsys):
    pipe = JanusPipeline.from_pretrained(stored["janus-mini"], "cpu", quantize="int4")
    assert any(isinstance(module, QuantizedWeight) for module in pipe.model.modules())
    assert bifrons_main("convert", stored["janus-mini"], tmp_path / "q", "--quantize", "int8") == 0
    assert JanusPipeline.from_pretrained(tmp_path / "q", "cpu").quantization == "int8"
    capsys.readouterr()
    assert bifrons_main("info", stored["janus-mini"], "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"]
    assert report["quantization"] is None


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(96, dtype=torch.int8), None])
def test_scales_that_do_not_fit_are_refused(stored, tmp_path, wrong):
    content = load_file(stored["janus-mini"] / "model.safetensors")
    name = next(key for key in content if key.endswith("_scale_inv"))
    if wrong is None:
        del content[name.removesuffix("_scale_inv")]
    else:
        content[name] = wrong
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is no scale of fp8 weights .* nor of the rows of int8 weights"
    ):
        list_tensors(tmp_path)
