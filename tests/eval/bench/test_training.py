"""`bench train`: what is measured and how it is counted, on a small model."""

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.eval.bench import training
from bifrons.eval.bench.configs import pick_config
from bifrons.eval.bench.measure import Bench

pytest.importorskip("peft")


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_both_sides_are_measured(mode, monkeypatch) -> None:
    monkeypatch.setattr(training, "_STEPS", 1)
    options = training.TrainBenchOptions("nano", mode, rows=1, layers=1, repeats=1, peers=True)
    lines: list[training.Line] = []
    report = training.bench_training(options, torch.device("cpu"), lines.append)
    assert [line.who for line in lines] == ["bifrons", "transformers"]
    tokens = 32 + pick_config("janus", "nano", 1).num_codes - 1  # type: ignore[union-attr]
    assert all(line.rate == pytest.approx(tokens / line.seconds) for line in lines)
    assert report["times_faster"] == round(lines[1].seconds / lines[0].seconds, 2)
    assert [line["who"] for line in report["lines"]] == ["bifrons", "transformers"]


def test_flops() -> None:
    config = pick_config("janus", "1b", None)
    layer = 4 * 2048**2 + 3 * 2048 * 5632
    head, attention = 2048 * 2048 + 2048 * 16384, 6 * 24 * 607 * 2048
    bench = Bench(torch.device("cpu"), print)
    for mode, factor in (("full", 6), ("lora", 4)):
        options = training.TrainBenchOptions("1b", mode)
        work = training.Work(bench, options, config, torch.bfloat16)  # type: ignore[arg-type]
        assert work.flops == (factor * (24 * layer + head) + attention) * 16 * 607


def test_options_are_checked(monkeypatch) -> None:
    with pytest.raises(OptionError, match="accepted: full, lora"):
        training.TrainBenchOptions(mode="half")
    with pytest.raises(OptionError, match="rows"):
        training.TrainBenchOptions(rows=0)
    monkeypatch.setattr(training, "world", lambda: 2)
    with pytest.raises(OptionError, match="no --peers"):
        training.TrainBenchOptions(peers=True)
