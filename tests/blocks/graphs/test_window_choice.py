"""Which windows `auto` takes, by measured times and by drafts that hold."""

from dataclasses import dataclass
from typing import Any

from bifrons.blocks.graphs.window_choice import WindowChoice


@dataclass(frozen=True)
class Device:
    """Steps take `cost[width]`; drafts hold with this many tokens a step, at most the window."""

    cost: dict[int, float]
    tokens: int


@dataclass(eq=False)
class Asked:
    """What is read of a request."""

    speculate: Any = "auto"
    rows: int = 2
    drafts: object = "drafts"
    matcher: object = None

    @property
    def head(self) -> "Asked":
        return self


def asked(speculate: Any = "auto", **other: Any) -> Any:
    return Asked(speculate, **other)


def widths(choice: WindowChoice, requests: list[Any], device: Device, steps: int) -> list[int]:
    """The windows of the first request in so many steps."""
    now, found = 0.0, []
    for _ in range(steps):
        taken = choice.widths(requests)
        found.append(taken[requests[0]])
        now += device.cost[max(taken.values())]
        choice.record({one: (min(device.tokens, width), width) for one, width in taken.items()}, now)
    return found


def test_auto_takes_the_window_that_gives_most_tokens_a_second() -> None:
    cheap = Device({1: 1.0, 4: 1.02, 8: 1.05, 16: 1.1}, 12)
    assert widths(WindowChoice(512), [asked()], cheap, 200)[-50:] == [16] * 50
    some = Device({1: 1.0, 4: 1.02, 8: 1.3, 16: 1.9}, 3)
    assert widths(WindowChoice(512), [asked()], some, 200)[-50:] == [4] * 50


def test_auto_takes_none_where_windows_cost_more_than_they_give() -> None:
    dear = Device({1: 1.0, 4: 2.5, 8: 3.0, 16: 5.0}, 2)
    assert widths(WindowChoice(512), [asked()], dear, 300)[-100:] == [1] * 100
    wrong = Device({1: 1.0, 4: 1.1, 8: 1.2, 16: 1.3}, 1)
    found = widths(WindowChoice(512), [asked()], wrong, 600)[-300:]
    assert found.count(1) > 200  # they are tried again now and then
    assert len(set(found)) > 1


def test_numbers_hold_as_far_as_they_fit() -> None:
    first, second, none = asked(5), asked(16, rows=1), asked(False)
    plain, held = asked(8, drafts=None), asked(8)
    held.matcher = object()
    taken = WindowChoice(512).widths([first, second, none, plain, held])
    assert list(taken.values()) == [5, 16, 1, 1, 1]
    many = [asked(16) for _ in range(64)]
    assert set(WindowChoice(512).widths(many).values()) == {4}
    assert set(WindowChoice(512).widths([asked() for _ in range(300)]).values()) == {1}
