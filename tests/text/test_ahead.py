"""Drafts of texts: they change no token; those of V3's layer are what transformers' layer predicts."""

import re

import pytest
import torch
from bifrons import TextPipeline
from bifrons.apps.pipelines import StepMeter
from bifrons.blocks.drafts import Drawn, LookupDrafts
from bifrons.eval.bench.measure import Bench
from bifrons.eval.bench.windows import bench_drafts
from bifrons.text.ahead import AheadDrafter, AheadDrafts
from torch import Tensor

USER = [{"role": "user", "content": "what is the sum?"}]
SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.9, "seed": 4},
    {"temperature": 1.0, "seed": 5, "repetition_penalty": 1.2},
    {"temperature": 1.0, "seed": 6, "max_thinking_tokens": 5},
]


@pytest.fixture
def pipe(text_pair) -> TextPipeline:
    return text_pair("deepseek_v3").pipe


@pytest.mark.parametrize("kind", ["qwen2", "deepseek_v3"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top-p", "penalty", "thought"])
def test_tokens_are_those_without_drafts(text_pair, kind: str, sampling):
    pipe = text_pair(kind).pipe
    others = [USER, [{"role": "user", "content": "1 2 1 2 1 2 1 2"}]]
    plain = pipe.chat_batch(others, 24, speculate=False, **sampling)
    for speculate in (2, 5, "auto"):
        assert pipe.chat_batch(others, 24, speculate=speculate, **sampling) == plain


def drawn_of(tokens: list[int], step: int, hidden_1WD: Tensor) -> Drawn:
    def redraw(logits_NkV: Tensor, steps_Nk: Tensor) -> Tensor:
        return logits_NkV.argmax(-1)

    ids = torch.tensor([tokens])
    return Drawn(
        ids, torch.zeros(1, 1, 1), torch.tensor([step]), torch.tensor([len(tokens)]), redraw, hidden_1WD
    )


@torch.no_grad()
def test_drafts_are_those_of_transformers_layer(pipe, text_pair):
    """Of its cache, filled by a prompt and by passes that gave one token and three; a pass that is recorded
    again changes nothing."""
    layers = pytest.importorskip("transformers.modeling_layers")
    cache_utils = pytest.importorskip("transformers.cache_utils")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this release of transformers has no multi-token prediction")
    main = text_pair("deepseek_v3").theirs
    theirs = layers.MtpModel(main, 1).eval()
    state = pipe.model.ahead.state_dict()
    renamed = {
        re.sub(r"mlp\.experts\.(gate_up|down)", r"mlp.experts.\1_proj", name): t for name, t in state.items()
    }
    own = {f"layers.0.{n.replace('block.', 'mtp_block.')}": t for n, t in renamed.items()}
    own["layers.0.post_norm.weight"] = own.pop("layers.0.norm.weight")
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert unexpected == []
    assert all(name.startswith(("embed_tokens", "shared_head")) for name in missing)

    ids = torch.randint(0, 300, (40,), generator=torch.Generator().manual_seed(3))
    hidden_1TD = main.model(ids[None]).last_hidden_state

    def expected(length: int) -> int:
        """The token after `ids[:length]` by their layer, over all of these tokens at once."""
        inputs, before = ids[None, 1:length], hidden_1TD[:, : length - 1]
        cache = cache_utils.MtpCache(config=main.config.get_mtp_config())
        positions = torch.arange(1, length)[None]
        drafted, _, _ = theirs(inputs, before, None, positions, cache)
        return int(drafted[0, 0])

    drafter = AheadDrafts(pipe.model).drafter(1, 512, 64, torch.device("cpu"))
    drafter.start(0, ids[:30])
    place = 30
    for count in (1, 3, 1):
        tokens = ids[place : place + count].tolist()
        drawn = drawn_of(tokens, place - 30, hidden_1TD[:, place - 1 : place - 1 + count])
        place += count
        for _ in range(2):
            drafter.record(drawn)
            drafts = drafter.propose(drawn, 3)
            assert drafts.shape == (1, 3)
            assert drafts[0, 0] == expected(place)


def test_on_other_devices_drafts_are_looked_up(pipe):
    """Hidden states don't leave captured windows: without them the layer would guess nothing at all."""
    places = (2, 512, 64, torch.device("meta"))
    kind = AheadDrafts(pipe.model)
    assert type(kind.drafter(*places)) is type(LookupDrafts().drafter(*places))
    assert isinstance(kind.drafter(*places[:3], torch.device("cpu")), AheadDrafter)


def test_the_cost_of_drafts_is_measured(pipe, text_pair):
    for model, drafts in ((pipe.model, 1), (text_pair("qwen2").pipe.model, 0)):
        bench = Bench(torch.device("cpu"), lambda line: None)
        bench_drafts(bench, model, 2, 20, 1.0, 1)
        works = [line.work for line in bench.lines]
        checks = ["checking 1 draft", "checking 2 drafts", "checking 4 drafts"]
        assert works == ["a draft by the prediction layer"][:drafts] + checks
        assert all(line.seconds > 0 for line in bench.lines)
        assert "if 60%, 85% hold: 1.60 tokens, x " in bench.lines[drafts].note


def test_right_drafts_save_passes(pipe, monkeypatch):
    """A layer that predicts as the model would: each pass gives as many tokens as it checks."""
    answer = pipe.prompts([USER], 1)
    meter = StepMeter(pipe)
    plain = pipe.chat(USER, 24, 0.0, speculate=False)
    assert meter.tokens_per_step == 1
    model = pipe.model
    known = pipe.tokenizer.encode(plain, bos=False)
    assert len(answer) == 1
    assert known

    def predicts(self, drawn: Drawn, count: int) -> Tensor:
        """By the model itself, whose tokens so far are those that the drafter recorded."""
        ids = answer[0].ids.tolist() + self.said
        found = []
        for _ in range(count):
            x_1TD = model.embed_text(torch.tensor([ids + found]))
            found.append(int(model.text_logits(model.decoder(x_1TD))[0, -1].argmax()))
        return torch.tensor([found])

    def record(self, drawn: Drawn) -> None:
        self.said = getattr(self, "said", [])[: int(drawn.steps_N)]
        self.said += drawn.tokens_NW[0, : int(drawn.counts_N)].tolist()

    monkeypatch.setattr("bifrons.text.ahead.AheadDrafter.propose", predicts)
    monkeypatch.setattr("bifrons.text.ahead.AheadDrafter.record", record)
    meter = StepMeter(pipe)
    assert pipe.chat(USER, 24, 0.0, speculate=4) == plain
    assert meter.tokens_per_step > 2.5
