"""Drafts by V3's layer in captured steps: they are those of the layer with a cache of its own, and change no
token. On the CPU, Triton's interpreter runs the kernels."""

import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
from bifrons.blocks.drafts import Drawn
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.graphs import graph_prefill
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer
from bifrons.blocks.graphs.graph_runner import GraphRunner
from bifrons.blocks.json_config import Section
from bifrons.blocks.sampling.request import SamplingParams
from bifrons.text.ahead import AheadDrafter, AheadDrafts, PooledAheadDrafter
from bifrons.text.config import parse_config
from bifrons.text.model import TextModel
from torch import Tensor

from ..blocks.engine.conftest import RequestMaker

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="there is no CUDA and no interpreter"
)
SIZES = {
    "model_type": "deepseek_v3", "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "first_k_dense_replace": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "num_nextn_predict_layers": 1, "max_position_embeddings": 64,
}  # fmt: skip
PROMPT, NEW = 7, 5


@pytest.fixture(scope="module")
def maker() -> RequestMaker:
    torch.manual_seed(0)
    model = TextModel(parse_config(Section(SIZES, "sizes"), ("ahead.",))).eval().requires_grad_(False)
    for tensor in model.parameters():
        noise = torch.randn_like(tensor)
        tensor.copy_(1 + 0.1 * noise if tensor.ndim == 1 else 0.4 * noise)
    return RequestMaker(model.to("cuda" if CUDA else "cpu"))


@torch.no_grad()
def drafts_of_definition(maker: RequestMaker, prompt: Tensor, tokens: list[int], count: int) -> list[int]:
    """The drafts after these tokens, all recorded in one pass."""
    model, device = maker.model, maker.decoder.device
    drafter = AheadDrafter(model, 1, 64)
    drafter.start(0, prompt)
    tokens_1W = torch.tensor([tokens], device=device)
    x_1TD = model.embed_text(torch.cat((prompt, tokens_1W[0])))[None]
    hidden_1WD = model.decoder(x_1TD)[:, len(prompt) - 1 : -1]
    steps = torch.tensor([[0], [len(tokens)]], device=device)
    logits = torch.zeros(1, 1, 1, device=device)
    places = steps[0], steps[1]
    drawn = Drawn(tokens_1W, logits, *places, lambda logits, steps: logits.argmax(-1), hidden_1WD)
    drafter.record(drawn)
    return drafter.propose(drawn, count)[0].tolist()


def test_drafts_and_tokens(maker, monkeypatch):
    """Steps without drafts, with right ones and with wrong ones; the prompt is computed in two parts."""
    monkeypatch.setattr(graph_prefill, "_MIN_SPAN", 64)
    made: list[tuple[int, list[int]]] = []
    propose = PooledAheadDrafter.propose

    def one_right(self: PooledAheadDrafter, drawn: Drawn, count: int) -> Tensor:
        """The right token, then a wrong one."""
        if not CUDA:
            made.append((int(drawn.steps_N[0] + drawn.counts_N[0]), propose(self, drawn, count)[0].tolist()))
        after = (drawn.steps_N + drawn.counts_N)[:, None] + torch.arange(count, device=drawn.steps_N.device)
        wrong = torch.arange(count, device=after.device) > 0
        return answer[after.clamp(max=NEW - 1)] + wrong

    expected = maker.alone([maker.answer(PROMPT, SamplingParams(0.0), 1, NEW)])[0]
    answer = torch.tensor(expected, device=maker.decoder.device)
    monkeypatch.setattr(PooledAheadDrafter, "propose", one_right)
    request = maker.answer(PROMPT, SamplingParams(0.0), 1, NEW, speculate=3, prefill_chunk=4)
    request.head = replace(request.head, drafts=AheadDrafts(maker.model))
    scheduler = Scheduler(maker.decoder, capturer=None if CUDA else GraphCapturer())
    assert maker.run(scheduler, [request]) == [expected]
    assert request.passes < NEW
    assert isinstance(scheduler.runner, GraphRunner)
    assert scheduler.runner._windows.enabled
    known = [(steps, drafts) for steps, drafts in made if steps <= NEW]
    for steps, drafts in known:
        assert drafts == drafts_of_definition(maker, maker.ids(PROMPT, 1), expected[:steps], len(drafts))
    assert CUDA or len(known) > 1


def test_without_drafts_the_layer_rests(maker, monkeypatch):
    monkeypatch.setattr(graph_prefill, "_MIN_SPAN", 64)
    monkeypatch.setattr(maker.model.ahead, "joined", None)
    request = maker.answer(PROMPT, SamplingParams(0.0), 1, 2, speculate=False)
    request.head = replace(request.head, drafts=AheadDrafts(maker.model))
    expected = maker.alone([maker.answer(PROMPT, SamplingParams(0.0), 1, 2)])
    assert maker.run(Scheduler(maker.decoder, capturer=GraphCapturer()), [request]) == expected
