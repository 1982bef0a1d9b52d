"""The speed benchmark on tiny sizes: every figure is reported, and limits count what they say they count."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import json
import re
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from bifrons.apps.cli.bench import summary
from bifrons.blocks.checkpoints.key_mapping import saved_tensors
from bifrons.blocks.errors import OptionError
from bifrons.blocks.json_config import Section
from bifrons.blocks.model.kv_cache import KVCache
from bifrons.eval.bench import configs, peers
from bifrons.eval.bench.configs import JANUS, VL2, pick_config, random_model
from bifrons.eval.bench.measure import Bench, Line, duration_text, step_bytes
from bifrons.eval.bench.run import BenchOptions, run_bench
from bifrons.eval.bench.vllm_peer import bench_vllm, language_config
from bifrons.eval.bench.workloads import Amount, prompt_length
from bifrons.janus.model import JanusModel
from bifrons.text.config import parse_deepseek
from bifrons.vl2.config import read_config
from bifrons.vl2.model import VL2Model

# Billions of parameters that are computed with (SigLIP's pooling is not): arithmetic on the releases' files.
PARAMETERS = {"1b": 2.09, "7b": 7.42, "tiny": 3.37, "small": 16.1, "base": 27.5}


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes_are_those_of_the_releases(size):
    with torch.device("meta"):
        model = JanusModel(JANUS[size]) if size in JANUS else VL2Model(VL2[size])
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(PARAMETERS[size], rel=0.01)


@pytest.mark.parametrize("quantize", [None, "int8", "int4", "fp8"])
def test_a_run_has_its_figures(quantize):
    lines = []
    options = BenchOptions(
        "janus", "nano", layers=1, batch=2, steps=2, repeats=1, device="cpu", quantize=quantize
    )
    report = run_bench(options, lines.append)
    assert [line.work for line in lines] == [
        "painting, a step of 4 rows",
        *(f"painting, a window of {width} codes, 4 rows" for width in (4, 8, 16)),
        "prompt of 32 tokens and a token, 4 rows",
        "VQ decoder, 1 picture",
        "SigLIP and adaptor, 1 picture",
    ]
    assert report["lines"] == [line.as_json() for line in lines]
    step = lines[0]
    assert step.ratio == pytest.approx(step.seconds / step.limit)
    assert step.rate == pytest.approx(2 / step.seconds)
    assert all(line.peak > 0 and line.seconds >= line.best > 0 for line in lines)
    window = lines[1]
    assert window.rate == pytest.approx(2 * 4 / window.seconds)
    pattern = r"x [\d.]+ of one token's; all steps at 1\.5, 2, 2\.5, 3 tokens a step: (.*)"
    first, *_, last = re.fullmatch(pattern, window.note)[1].split(", ")
    units = {"ms": 0.001, "s": 1.0}
    first, last = (float(text.split()[0]) * units[text.split()[1]] for text in (first, last))
    assert first / last == pytest.approx(2, rel=0.02)
    assert report["bandwidth"] > 1e8
    assert report["dtype"] == "bfloat16"
    assert report["machine"]["threads"] == torch.get_num_threads()
    json.dumps(report)


def test_peers_do_the_same_work():
    pytest.importorskip("transformers")
    lines = []
    options = BenchOptions("janus", "nano", layers=1, steps=2, repeats=1, device="cpu", peers="transformers")
    run_bench(options, lines.append)
    steps = [line for line in lines if line.work == "painting, a step of 2 rows"]
    assert [line.who for line in steps] == ["bifrons", "transformers Llama loop", "transformers Janus"]
    assert len({line.limit for line in steps}) == 1


def test_a_peer_that_fails_is_reported(monkeypatch):
    pytest.importorskip("transformers")

    def fails(*args):
        raise TypeError("an argument is missing")

    monkeypatch.setattr(peers, "_bench_janus", fails)
    options = BenchOptions("janus", "nano", layers=1, steps=2, repeats=1, device="cpu", peers="transformers")
    report = run_bench(options, lambda line: None)
    assert report["lines"][-1]["who"] == "transformers Llama loop"
    (failed,) = report["failed"]
    assert failed.endswith("Janus did not run: TypeError: an argument is missing")
    assert summary(report)[0] == failed


def test_vl2_in_small(monkeypatch, janus_mini):
    config = read_config(janus_mini.parent / "vl2-mini-mla")
    monkeypatch.setitem(configs.VL2, "tiny", config)
    for quantize in (None, "int4"):
        lines = []
        options = BenchOptions("vl2", "tiny", steps=2, repeats=1, device="cpu", quantize=quantize)
        run_bench(options, lines.append)
        assert len(lines) == 3
        assert lines[0].work == "answering, a step of 1 conversation"
        assert "first token, prompt of 181 tokens with 2 x 2 tiles" in lines[1].work


def test_the_limit_counts_what_a_step_reads(janus_mini):
    config = pick_config("janus", "nano", 2)
    model = random_model(config, torch.device("cpu"), torch.bfloat16, None)
    decoder = model.decoder
    weights = sum(t.numel() for name, t in saved_tensors(decoder).items() if not name.startswith("embed"))
    slot = KVCache.row_bytes(32, 2, config.decoder.cache_widths, torch.bfloat16) // 32
    assert slot == 2 * 2 * config.decoder.hidden_size * 2
    head = model.gen_head
    expected = 2 * (weights + sum(p.numel() for p in head.parameters())) + 3 * 10 * slot
    assert step_bytes(decoder, [head], 3, 10) == expected
    eight = random_model(config, torch.device("cpu"), torch.bfloat16, "int8")
    assert step_bytes(eight.decoder, [], 1, 0) < 0.52 * step_bytes(decoder, [], 1, 0)


def test_the_limit_counts_chosen_experts(janus_mini):
    config = read_config(janus_mini.parent / "vl2-mini-mla")
    with torch.device("meta"):
        decoder = VL2Model(config).decoder
    moe = config.decoder.moe
    experts = 3 * 3 * moe.num_experts * moe.expert_width * 96 * 4  # layers, projections, in float32
    all_of_them, one = step_bytes(decoder, [], 10**6, 0), step_bytes(decoder, [], 1, 0)
    assert all_of_them - one == pytest.approx(experts * (1 - moe.top_k / moe.num_experts))


@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_random_models_compute_finite_numbers(kind):
    model = random_model(pick_config("janus", "nano", 2), torch.device("cpu"), torch.float32, kind)
    with torch.no_grad():
        logits = model.image_logits(model.decoder(model.embed_text(torch.arange(5))[None]))
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_the_command(bifrons_main, capsys):
    words = ("bench", "janus", "--size", "nano", "--layers", "1", "--steps", "2", "--repeats", "1")
    assert bifrons_main(*words, "--device", "cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 1
    assert bifrons_main(*words, "--device", "cpu", "--quantize", "int8") == 0
    out = capsys.readouterr().out
    assert "painting, a step of 2 rows" in out
    assert "bfloat16 with int8 weights" in out
    for flags, message in (
        (("--size", "2b"), "size is '2b'; accepted for janus: 1b, 7b, nano"),
        (("--layers", "99"), "layers is 99; accepted: 1 to 10, as nano has"),
        (("--batch", "0"), "batch is 0; accepted: at least 1"),
        (("--quantize", "int3"), "quantize is 'int3'"),
    ):
        assert bifrons_main("bench", "janus", "--size", "nano", "--device", "cpu", *flags) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(OptionError, match="accepted for vl2: vllm"):
        BenchOptions("vl2", "tiny", peers="transformers")


def test_durations_for_people():
    assert [duration_text(value) for value in (0.0123, 0.9, 1.5)] == ["12.3 ms", "900 ms", "1.5 s"]
    assert Line("a", "b", 2.0, 1.0, 3, 1.0, "/s", 0.5, 1).ratio == 4.0


def test_several_processes_are_measured_beside_one():
    lines = []
    options = {"layers": 1, "steps": 2, "repeats": 1, "device": "cpu", "dtype": "float32"}
    run_bench(BenchOptions("vl2", "nano", tensor_parallel=2, **options), lines.append)
    assert [line.who for line in lines] == ["bifrons"] * 3 + ["bifrons, 2 processes"] * 3
    assert re.match(r"x [\d.]+ of [\d.]+ m?s in one process; 2 steps", lines[3].note)
    with pytest.raises(OptionError, match="without quantize and peers"):
        BenchOptions("janus", "nano", quantize="int8", tensor_parallel=2)


class FakeVLLM(ModuleType):
    """A module with vLLM's classes as the benchmark calls them, which reads the folder that it is given."""

    __version__ = "0"

    def __init__(self) -> None:
        super().__init__("vllm")
        self.SamplingParams = SimpleNamespace
        self.configs, self.asked = [], []

    def LLM(self, model, load_format, dtype, **options):
        assert (load_format, dtype, options["limit_mm_per_prompt"]) == ("dummy", "bfloat16", {"image": 0})
        self.configs.append(read_config(Path(model)))
        assert {path.name for path in Path(model).iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}
        return SimpleNamespace(generate=self.generate)

    def generate(self, prompts, sampling, use_tqdm):
        self.asked.append(([len(prompt["prompt_token_ids"]) for prompt in prompts], sampling.max_tokens))
        time.sleep(0.001 * sampling.max_tokens)


def test_vllm_is_given_the_same_model_and_work(monkeypatch):
    """In place of vLLM, which needs a GPU; every released size survives the way through its config."""
    vllm, config = FakeVLLM(), configs.pick_config("vl2", "nano", 1)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    lines = []
    options = BenchOptions("vl2", "nano", layers=1, steps=2, repeats=1, batch=2, device="cpu", peers="vllm")
    report = run_bench(options, lines.append)
    assert report["failed"] == []
    mine, other = [line for line in lines if line.work == "answering, a step of 2 conversations"]
    assert (mine.who, other.who) == ("bifrons", "vLLM")
    assert mine.limit == other.limit
    length = prompt_length(config)
    assert vllm.asked == [([length] * 2, 1)] * 2 + [([length] * 2, 3)] * 2
    assert vllm.configs[0].decoder == config.decoder
    for size, released in configs.VL2.items():
        assert parse_deepseek(Section(language_config(released.decoder), size)) == released.decoder
    monkeypatch.setattr(vllm, "LLM", lambda *_, **__: [][0])
    work = Bench(torch.device("cpu"), print), config, torch.bfloat16, 1, 1.0, Amount(2, 1, False)
    assert bench_vllm(*work) == ["vLLM 0 did not run: IndexError: list index out of range"]


def test_vllm_is_asked_for_where_it_is_missing(monkeypatch, bifrons_main, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert bifrons_main("bench", "vl2", "--size", "nano", "--device", "cpu", "--peers", "vllm") == 1
    assert "peers vllm needs the package vllm" in capsys.readouterr().err
