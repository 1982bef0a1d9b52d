"""Models over several processes give the tokens of one; a process that is killed ends the work in words."""

import gc
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from bifrons import JanusPipeline, TextPipeline, VL2Pipeline
from bifrons.blocks.errors import OptionError, ResourceError
from bifrons.blocks.placement.rank_group import RankGroup, open_store
from bifrons.blocks.placement.tensor_parallel import check_ranks

from .transformers_text import make_folder

DATA = Path(__file__).parent / "data"
HELLO = [{"role": "user", "content": "hello there, what is this?"}]
CONVERSATIONS = [HELLO, [*HELLO, {"role": "assistant", "content": "a star"}, *HELLO], HELLO]


class Pair(NamedTuple):
    """A pipeline of one process, and one of two."""

    alone: Any
    parallel: Any


def load(kind: Any, folder: Path) -> Pair:
    return Pair(
        *(kind.from_pretrained(folder, "cpu", progress=False, tensor_parallel=ranks) for ranks in (1, 2))
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> dict[str, Pair]:
    """Loaded together, as their processes take seconds to start."""
    text = make_folder(tmp_path_factory.mktemp("text"), "qwen2")[0]
    folders = [
        (JanusPipeline, DATA / "janus-mini"),
        (VL2Pipeline, DATA / "vl2-mini-mla"),
        (TextPipeline, text),
    ]
    with ThreadPoolExecutor(len(folders)) as pool:
        return dict(zip(("janus", "vl2", "text"), pool.map(lambda one: load(*one), folders), strict=True))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"guidance_scale": 1.0, "top_p": 0.9}])
def test_pictures_are_those_of_one_process(pairs: dict[str, Pair], options: dict[str, float]) -> None:
    found = [
        pipe.generate(["a star", "two circles"], 2, seed=3, output_type="codes", **options)
        for pipe in pairs["janus"]
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["janus", "vl2", "text"])
def test_answers_are_those_of_one_process(name: str, pairs: dict[str, Pair]) -> None:
    """Greedy and drawn, several at once with common beginnings, and checked in windows."""
    alone, parallel = pairs[name]
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 4, "speculate": 4}):
        answers = [pipe.chat_batch(CONVERSATIONS, 12, **options) for pipe in (alone, parallel)]
        assert answers[0] == answers[1]
    logits = [pipe.next_logits(HELLO, prefill_chunk=chunk) for pipe in pairs[name] for chunk in (None, 4)]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-5)
    scores = [pipe.score_text(HELLO, "a red star") for pipe in (alone, parallel)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


def test_answers_about_pictures_are_those_of_one_process(pairs: dict[str, Pair], parity_picture) -> None:
    picture = parity_picture(1, 90, 60)
    for name in ("janus", "vl2"):
        assert len({pipe.ask(picture, "what is it?", 8) for pipe in pairs[name]}) == 1


def test_what_a_divided_model_cannot_do_is_refused(pairs: dict[str, Pair], tmp_path: Path) -> None:
    pipe = pairs["janus"].parallel
    assert "tensor_parallel=2" in repr(pipe)
    for call in (lambda: pipe.to(torch.float16), lambda: pipe.save_pretrained(tmp_path / "copy")):
        with pytest.raises(OptionError, match=r"several devices|tensor_parallel"):
            call()
    with pytest.raises(OptionError, match="--merge-adapter"):
        pipe.load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_parallel": 3}, "has 4 attention heads; accepted: a divisor of 4"),
        ({"tensor_parallel": 0}, "accepted: 1 to 64"),
        ({"tensor_parallel": 2, "device_map": "auto", "device": None}, "exclude each other"),
        ({"tensor_parallel": 2, "quantize": "int8"}, "can't divide int8 weights"),
    ],
)
def test_options_that_are_not_accepted(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        JanusPipeline.from_pretrained(DATA / "janus-mini", **{"device": "cpu", "progress": False, **options})


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(OptionError, match="has 1 CUDA GPUs; accepted: up to 1"):
        check_ranks(2, torch.device("cuda"))
    with pytest.raises(OptionError, match="accepted: cuda, cpu"):
        check_ranks(2, torch.device("mps"))


def test_a_rank_that_is_killed_ends_the_work_in_words(pairs: dict[str, Pair]) -> None:
    """Between two steps of a picture; later calls say it too. The last test of this pipeline."""
    pipe = pairs["janus"].parallel
    main = pipe.model.decoder.group
    other = main._processes[0].process

    def kill(step: int, total: int, codes: object) -> None:
        if step == 2:
            os.kill(other.pid, signal.SIGKILL)

    for _ in range(2):
        with pytest.raises(ResourceError, match=r"rank 1 of 2 was killed by signal 9.*load it again"):
            pipe.generate("a star", callback=kill)


def test_ranks_end_with_their_model(pairs: dict[str, Pair]) -> None:
    main = pairs.pop("vl2").parallel.model.decoder.group
    gc.collect()
    assert [one.process.poll() for one in main._processes] == [0]


def test_sums_of_many_ranks_are_in_one_order() -> None:
    """Three ranks as threads: the same bits on all, and for a row alone."""
    store = open_store(3)
    x_RND = torch.randn(3, 5, 64)

    def run(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own = store if rank == 0 else open_store(3, store.port)
        group = RankGroup(rank, 3, torch.device("cpu"), own)
        numbers, places = torch.full((2, 3), float(rank), dtype=torch.bfloat16), torch.full((2,), rank)
        group.share([places, numbers])
        return group.sum(x_RND[rank]), group.sum(x_RND[rank, :1]), numbers + places[:, None]

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    expected = (x_RND[0] + x_RND[1]) + x_RND[2]
    for many, one, shared in results:
        assert torch.equal(many, expected)
        assert torch.equal(one, expected[:1])
        assert not shared.any()
