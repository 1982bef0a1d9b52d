"""What users of transformers expect: arguments of loading, `.to()`, `save_pretrained()`, pickle."""

import copy
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons import CheckpointError, JanusPipeline, OptionError, VL2Pipeline
from bifrons.blocks.checkpoints.quantize import stored_kind
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent / "data"
PIPELINES = {"janus-mini": JanusPipeline, "vl2-mini-noaux": VL2Pipeline}
MESSAGES = [{"role": "user", "content": "What is this?"}]
each = pytest.mark.parametrize("name", PIPELINES)


def load(name: str, folder: Path | None = None, **more: Any) -> Any:
    return PIPELINES[name].from_pretrained(folder or DATA / name, device="cpu", progress=False, **more)


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    """One pipeline of each family, not to be changed."""
    return {name: load(name) for name in PIPELINES}


def dtypes(pipe: Any) -> set[torch.dtype]:
    return {parameter.dtype for parameter in pipe.model.parameters()}


def assert_equal(found: Any, expected: Any, picture: Any = None) -> None:
    """The same logits, and the same codes of a picture."""
    assert torch.equal(found.next_logits(MESSAGES), expected.next_logits(MESSAGES))
    if isinstance(found, JanusPipeline) and picture is not None:
        assert torch.equal(found.encode_image(picture), expected.encode_image(picture))


# --- loading --------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "bfloat16", "dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "auto"}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"torch_dtype": None}, torch.float32),
    ],
)
def test_torch_dtype(name, options, expected):
    pipe = load(name, **options)
    assert pipe.dtype == expected
    assert dtypes(pipe) <= {expected, torch.float32}


def test_auto_is_the_dtype_of_most_weights(tmp_path):
    folder = shutil.copytree(DATA / "janus-mini", tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t if "norm" in n else t.half() for n, t in tensors.items()}, folder / "model.safetensors")
    assert dtypes(load("janus-mini", folder, torch_dtype="auto")) == {torch.float16}


def test_dtypes_that_differ_or_are_none(pipes):
    with pytest.raises(
        OptionError, match=r"dtype is 'float32' and torch_dtype torch\.float16; accepted: one"
    ):
        load("janus-mini", dtype="float32", torch_dtype=torch.float16)
    with pytest.raises(OptionError, match=r"dtype is 'int8'; accepted: float32"):
        load("vl2-mini-noaux", torch_dtype="int8")


@each
def test_arguments_of_transformers_that_change_nothing(name, pipes):
    options = {"trust_remote_code": True, "low_cpu_mem_usage": True, "use_safetensors": True, "token": "x"}
    more = {"attn_implementation": "sdpa", "local_files_only": True, "revision": "main", "subfolder": ""}
    pipe = load(name, **options, **more, quantization_config=None, load_in_4bit=False, variant=None)
    assert_equal(pipe, pipes[name])


@each
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("load_in_4bit", True, "load_in_4bit is 'True'.*instead: quantize='int4'"),
        ("load_in_8bit", True, "instead: quantize='int8'"),
        ("quantization_config", object(), "instead: quantize='int4', 'int8' or 'fp8'"),
        ("attn_implementation", "flash_attention_2", "attn_implementation is 'flash_attention_2'"),
        ("variant", "fp16", "say dtype"),
        ("subfolder", "x", "give the inner folder"),
        ("torch_dtyp", "float32", "has no argument 'torch_dtyp'"),
        ("revision", "v1", "A revision is the hub's"),
    ],
)
def test_arguments_that_are_refused_by_name(name, option, value, message):
    with pytest.raises((OptionError, CheckpointError), match=message):
        load(name, **{option: value})


@each
@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "module._orig_mod."])
def test_weights_with_a_prefix_of_training_tools(name, prefix, pipes, tmp_path):
    folder = shutil.copytree(DATA / name, tmp_path / "x")
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, folder / "model.safetensors")
    assert_equal(load(name, folder), pipes[name])


# --- moving ---------------------------------------------------------------------------------------------


@each
def test_to_casts_as_loading_does_and_returns_the_pipeline(name, pipes):
    pipe = load(name)
    pipe.next_logits(MESSAGES)
    assert pipe.to("cpu") is pipe
    assert_equal(pipe, pipes[name])
    assert pipe.to(torch.bfloat16) is pipe
    half = load(name, dtype=torch.bfloat16)
    assert {n: p.dtype for n, p in pipe.model.named_parameters()} == {
        n: p.dtype for n, p in half.model.named_parameters()
    }
    assert_equal(pipe, half)
    assert pipe.to("cpu", torch.float32).dtype == torch.float32
    assert pipe.to(device="cpu", dtype="float16").dtype == torch.float16


@each
def test_to_leaves_quantized_weights_alone(name):
    pipe, half = load(name, quantize="int8"), load(name, quantize="int8", dtype="bfloat16")
    assert_equal(pipe.to("bfloat16"), half)


@pytest.mark.parametrize("where", ["meta", "cuda:99", "tpu", torch.int8, 3])
def test_places_that_are_not_there(where, pipes):
    with pytest.raises(OptionError, match=r"accepted|is not there"):
        pipes["janus-mini"].to(where)


# --- saving ---------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("quantize", [None, "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_folder_gives_equal_results(name, quantize, dtype, tmp_path, parity_picture):
    pipe = load(name, quantize=quantize, dtype=dtype)
    pipe.next_logits(MESSAGES)
    folder = pipe.save_pretrained(tmp_path / "saved")
    again = load(name, folder, dtype="auto")
    assert again.dtype == pipe.dtype
    assert stored_kind(again.source.folder) == quantize
    assert_equal(again, pipe, parity_picture(1, 60, 60))


@each
def test_changed_weights_are_saved(name, tmp_path):
    pipe = load(name)
    with torch.no_grad():
        pipe.model.decoder.norm.weight.mul_(2)
    again = load(name, pipe.save_pretrained(tmp_path / "saved", max_shard_bytes=1_000_000))
    assert torch.equal(again.model.decoder.norm.weight, pipe.model.decoder.norm.weight)
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    assert_equal(again, pipe)


def test_only_whole_models_are_saved_to_new_folders(tmp_path, pipes):
    with pytest.raises(OptionError, match="parts='all'"):
        load("janus-mini", parts="read").save_pretrained(tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "file").touch()
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        pipes["janus-mini"].save_pretrained(tmp_path / "y")
    pipe = pipes["janus-mini"]
    made = JanusPipeline(pipe.model, pipe.tokenizer, pipe.processor, "x")
    with pytest.raises(OptionError, match="not made by from_pretrained"):
        made.save_pretrained(tmp_path / "z")


# --- passing on -----------------------------------------------------------------------------------------


@each
def test_a_pickled_pipeline_is_loaded_again(name, pipes, monkeypatch, tmp_path):
    monkeypatch.chdir(DATA)
    pipe = load(name, Path(name), dtype="bfloat16", quantize="int8")
    data = pickle.dumps(pipe)
    assert len(data) < 100_000
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(data)
    assert (type(again), again.name, again.dtype) == (type(pipe), pipe.name, torch.bfloat16)
    assert_equal(again, pipe)
    assert_equal(copy.deepcopy(pipe), pipe)
    assert copy.copy(pipe).model is pipe.model


def _answer(pipe: Any) -> str:
    return pipe.chat(MESSAGES, max_new_tokens=3)


def test_a_pipeline_goes_to_another_process(pipes):
    pipe = pipes["vl2-mini-noaux"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_answer, (pipe,)) == _answer(pipe)


def test_what_was_changed_in_memory_says_how_to_pass_it_on(pipes):
    pipe = pipes["janus-mini"]
    made = JanusPipeline(pipe.model, pipe.tokenizer, pipe.processor, "x")
    trained = load("janus-mini")
    trained.model.decoder.norm.weight.requires_grad_(True)
    for one in (made, trained):
        with pytest.raises(
            OptionError, match=r"save_pretrained\(folder\) and give the other process the folder"
        ):
            pickle.dumps(one)


def test_the_config_of_a_saved_folder_is_the_original(pipes, tmp_path):
    folder = pipes["vl2-mini-noaux"].save_pretrained(tmp_path / "x")
    expected = json.loads((DATA / "vl2-mini-noaux" / "config.json").read_text())
    assert json.loads((folder / "config.json").read_text()) == expected
