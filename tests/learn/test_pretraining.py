"""Pretraining: goes on to the same bits, by steps or by the clock, on one process or several."""

from itertools import pairwise

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.learn import pretraining
from bifrons.learn.pretraining import Pretraining, PretrainingOptions
from bifrons.learn.schedule import rate_at

from . import pretraining_work as work


class Noisy(work.Halving):
    """Learns from new numbers in each step, and remembers how far it was told to be."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[float] = []

    def begin_step(self, progress: float) -> bool:
        self.changes.append(progress)
        return False

    def losses(self) -> dict[str, torch.Tensor]:
        self.rows = torch.randn(16, 8)
        return super().losses()


def options(**more) -> PretrainingOptions:
    return PretrainingOptions(**{"learning_rate": 0.02, "steps": 60, "report_every": 1, **more})


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, optimizer) -> None:
    whole, figures = Noisy(), []
    run = Pretraining(whole, options(optimizer=optimizer), tmp_path / "whole")
    run.run(figures.append)
    assert [one["step"] for one in figures] == list(range(1, 61))
    assert figures[-1]["error_loss"] < 0.3 * figures[0]["error_loss"]
    assert whole.changes == [step / 60 for step in range(60)]

    class StopError(Exception):
        pass

    first = Pretraining(Noisy(), options(optimizer=optimizer, save_seconds=0.0), tmp_path / "parts")
    torch.manual_seed(0)

    def stop(figures: dict[str, float]) -> None:
        if figures["step"] == 31:
            raise StopError

    with pytest.raises(StopError):
        first.run(stop)
    again = Noisy()
    second = Pretraining(again, options(optimizer=optimizer), tmp_path / "parts")
    assert second.resume() == 30
    assert 0 < float(second.state.seconds) < 60
    # From the same checkpoint the same bits, whatever was drawn before.
    third = Noisy()
    other = Pretraining(third, options(optimizer=optimizer), tmp_path / "parts")
    other.resume()
    second.run()
    torch.randn(5)
    other.folder = tmp_path / "other"
    other.checkpoints = tmp_path / "other" / "checkpoints"
    other.folder.mkdir()
    other.run()
    for one, two in zip(again.parameters(), third.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(second.state.average.buffers(), other.state.average.buffers(), strict=True):
        assert torch.equal(one, two)
    once_more = Pretraining(again, options(optimizer=optimizer, steps=61), tmp_path / "parts")
    assert once_more.resume() == 60  # also where there are gradients
    once_more.run()
    assert once_more.step == 61


def test_the_average_is_in_place_for_a_while(tmp_path) -> None:
    objective = Noisy()
    run = Pretraining(objective, options(steps=20), tmp_path)
    run.run()
    before = [p.detach().clone() for p in objective.parameters()]
    with run.averaged():
        inside = [p.detach().clone() for p in objective.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, inside, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inside, run.state.average.buffers(), strict=True))


def test_seconds_of_training_are_counted_over_restarts(tmp_path, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("bifrons.learn.schedule.time.monotonic", lambda: now[0])
    monkeypatch.setattr(pretraining.time, "monotonic", lambda: now[0])
    objective = Noisy()

    class Passing(Pretraining):
        def take_step(self, prepared):
            taken = super().take_step(prepared)
            now[0] += 1.0
            return taken

    run = Passing(objective, options(steps=None, seconds=10.0), tmp_path)
    run.run()
    assert run.step == 10
    assert float(run.state.seconds) == 10.0
    longer = Passing(Noisy(), options(steps=None, seconds=14.0), tmp_path)
    assert longer.resume() == 10
    longer.run()
    assert longer.step == 14
    bounded = Passing(Noisy(), options(steps=None, seconds=30.0, wall=5.0), tmp_path)
    bounded.resume()
    now[0] += 2.0  # spent on loading
    bounded.run()
    assert bounded.step == 17


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [rate_at(step / 100, 1.0, 0.1, 0.5) for step in range(101)]
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert set(rates[10:50]) == {1.0}
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert rates[0] == 0
    assert abs(rates[75] - 0.5) < 1e-9
    assert abs(rates[100]) < 1e-9


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"seconds": 5.0}, "one of them"),
        ({"steps": None}, "one of them"),
        ({"steps": 0}, "steps"),
        ({"optimizer": "sgd"}, "accepted: muon, adamw"),
        ({"decay_from": 1.0}, "decay_from"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_options_are_checked(more, text) -> None:
    with pytest.raises(OptionError, match=text):
        options(**more)
