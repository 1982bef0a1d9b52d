"""Adapters in captured steps: requests with different ones and with none run together, each as alone."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.checkpoints.key_mapping import ParameterSlice
from bifrons.blocks.conversion.adapter_change import Adapter, Change
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, graph_capturer
from bifrons.blocks.graphs.graph_runner import GraphRunner
from bifrons.blocks.kernels import dispatch
from bifrons.blocks.placement.adapted import fits_graphs, parameter_shapes
from bifrons.blocks.placement.adapters import LoadedAdapters
from bifrons.blocks.sampling.request import Request, SamplingParams, TokenHead

from ...models import quantize_model

pytestmark = pytest.mark.usefixtures("few_programs")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "kv_a_proj_with_mqa")


def adapter(
    model: Any, seed: int, rank: int = 4, layers: tuple[str, ...] = LINEAR, head: bool = False
) -> Adapter:
    generator, changes = torch.Generator().manual_seed(seed), {}
    for name, shape in parameter_shapes(model).items():
        target, layer = ParameterSlice(name), name.split(".")[-2]
        if layer in layers:
            b, a = (
                torch.randn(size, generator=generator) * 0.4 for size in ((shape[0], rank), (rank, shape[1]))
            )
            changes[name] = (Change(target, (b, a)),)
        elif head and name == "lm_head.weight":
            changes[name] = (Change(target, whole=torch.randn(shape, generator=generator)),)
    return Adapter(Path(), "", changes, str(seed))


def with_adapter(model: Any, *args: Any, **options: Any) -> LoadedAdapters:
    loaded = LoadedAdapters(model, beside=True)
    loaded.add("it", adapter(model, *args, **options), 1.0)
    return loaded


def answers(maker: Any, models: list[Any], new: int = 2) -> list[Request]:
    """Of each model, after prompts of different lengths."""
    made = []
    for index, model in enumerate(models):
        head = TokenHead(model.embed_text, model.text_logits)
        prompt = [maker.prompt(5 + 3 * index, 1)]
        made.append(maker.request(head, prompt, SamplingParams(1.0), 7, new, decoder=model.decoder))
    return made


def captured(maker: Any) -> tuple[Any, GraphCapturer]:
    capturer = graph_capturer(DEVICE)
    scheduler = Scheduler(maker.decoder, capturer=capturer)
    assert isinstance(scheduler.runner, GraphRunner)
    return scheduler, capturer


@pytest.mark.parametrize("name", ["dense-tiny", "latent-tiny"])
def test_requests_with_different_adapters_get_their_tokens_alone(name: str, small_model, requests_of) -> None:
    maker = requests_of(small_model(name, DEVICE))
    base = maker.model
    loaded = [
        with_adapter(base, 1),
        with_adapter(base, 2, rank=20, layers=("q_proj", "down_proj"), head=True),
    ]
    models = [base, *(one.model for one in loaded), base]
    requests = answers(maker, models)
    expected = maker.alone(requests)
    assert len({tuple(tokens) for tokens in expected[1:]}) == 3
    scheduler, _ = captured(maker)
    assert maker.run(scheduler, requests) == expected
    assert maker.run(scheduler, [answers(maker, models)[1]]) == [expected[1]]


def test_adapters_come_and_go_without_captures(small_model, requests_of) -> None:
    maker = requests_of(small_model("dense-tiny", DEVICE))
    first, second = with_adapter(maker.model, 1), with_adapter(maker.model, 2)
    scheduler, capturer = captured(maker)
    for one in ([first.model], [maker.model], [first.model, second.model]):
        maker.run(scheduler, answers(maker, one))
    made, adapters = capturer.made, scheduler.runner.adapters
    assert adapters.slots == 2
    for seed in (3, 4):
        second = with_adapter(maker.model, seed, layers=LINEAR[seed % 2 :])
        gc.collect()
        requests = answers(maker, [first.model, second.model])
        expected = maker.alone(requests)
        assert maker.run(scheduler, requests) == expected
    first.remove("it")
    requests = answers(maker, [first.model, second.model])
    assert first.model is maker.model
    assert maker.run(scheduler, requests) == maker.alone(answers(maker, [first.model, second.model]))
    assert capturer.made == made
    assert adapters.slots == 2
    larger = with_adapter(maker.model, 7, rank=17)
    requests = answers(maker, [larger.model, second.model])
    expected = maker.alone(requests)
    assert maker.run(scheduler, requests) == expected
    assert capturer.made > made
    assert adapters.rank == 32


def test_a_request_keeps_the_adapter_that_is_unloaded_while_it_runs(small_model, requests_of) -> None:
    maker = requests_of(small_model("dense-tiny", DEVICE))
    first = with_adapter(maker.model, 1)
    running = answers(maker, [first.model], new=5)
    expected = maker.alone(running)
    scheduler, _ = captured(maker)
    scheduler.submit(running)
    for _ in range(2):
        scheduler.step()
    first.remove("it")
    others = [with_adapter(maker.model, seed) for seed in (2, 3)]
    requests = answers(maker, [one.model for one in others])
    found = maker.run(scheduler, requests)
    assert found == maker.alone(answers(maker, [one.model for one in others]))
    assert [out.tokens for out in maker.outs(running)] == expected
    assert len(scheduler.runner.adapters.release(())) == 1  # the first one's


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_adapters_of_quantized_weights(
    kind: str, small_model, requests_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = requests_of(small_model("dense-tiny", DEVICE))
    quantize_model(maker.model, kind)
    loaded = with_adapter(maker.model, 1)
    models = [loaded.model, maker.model]
    requests = answers(maker, models)
    expected = maker.alone(requests)
    assert expected[0] != expected[1][: len(expected[0])]
    if DEVICE.type == "cpu":
        monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: True)
        monkeypatch.setattr(dispatch, "supports_float8", lambda device: True)
    scheduler, _ = captured(maker)
    assert maker.run(scheduler, requests) == expected


def test_the_heads_of_an_adapter_that_is_gone_are_forgotten(small_model, requests_of) -> None:
    maker = requests_of(small_model("dense-tiny", DEVICE))
    scheduler, _ = captured(maker)
    for seed in range(2):
        loaded = with_adapter(maker.model, seed, head=True)
        maker.run(scheduler, answers(maker, [loaded.model, maker.model]))
        loaded.remove("it")
    maker.run(scheduler, answers(maker, [maker.model]))
    assert len(scheduler.runner._groups) == 1
    assert len(scheduler.runner._heads) == 1


def test_what_captured_steps_can_run(small_model) -> None:
    dense, latent = small_model("dense-tiny"), small_model("latent-tiny")
    assert fits_graphs(dense, adapter(dense, 1, head=True))
    assert fits_graphs(latent, adapter(latent, 1))
    assert not fits_graphs(latent, adapter(latent, 1, layers=("kv_b_proj",)))
    experts = small_model("experts-tiny")
    assert fits_graphs(experts, adapter(experts, 1, layers=("q_proj",)))
    assert not fits_graphs(experts, adapter(experts, 1))  # of the shared experts
