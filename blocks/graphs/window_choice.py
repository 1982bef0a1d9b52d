"""Which windows requests on a device take whose option `speculate` is `auto`: by the time that steps took and
the tokens that they gave.

A request of which so many tokens are expected of a window counts with these; windows are taken that give the
most tokens a second of all requests of a step, none if that is no window.
"""

from collections.abc import Mapping, Sequence

from ..sampling.request import Request, TokenHead

WIDTHS = (1, 4, 8, 16)
"""Windows that `auto` takes."""
_EXPECTED = 0.65
"""The share of drafts that hold after right ones, until it is known."""
_WEIGHT, _REST_WEIGHT = 0.1, 0.002  # of a step in what is known of later ones, and in forgetting it
_GAIN = 1.05  # by which others must be better to be taken instead
_DOUBLING = 64  # tokens by which a pass is expected to take twice as long, until it is measured
_TIMES, _ENOUGH = 8, 3  # times that are kept, and from which on they count
_EVERY = 8  # steps between two choices
_MOST = 128  # tokens of a pass: more keep the device busy


class Acceptance:
    """How often the first k drafts of a window hold."""

    def __init__(self, start: "Acceptance | None" = None) -> None:
        self._held = list(start._held) if start else [_EXPECTED**k for k in range(WIDTHS[-1])]
        self._steps = 0

    def tokens(self, width: int) -> float:
        """The tokens that are expected of a step."""
        return sum(self._held[:width])

    def record(self, held: int, width: int) -> None:
        """Note that `held` of the draws of a window of `width`, more than one, held."""
        self._steps += 1
        weight = max(_WEIGHT, 1 / (self._steps + 2))
        each = self._held[width - 1] ** (1 / (width - 1)) if width <= len(self._held) else 0.0
        for k, before in enumerate(self._held):
            # Drafts beyond the window would have held as often as those within.
            now = float(held > k) if k < width else each**k
            self._held[k] += weight * (now - before)

    def forget(self) -> None:
        """Expect a little more of what was not tried in this step, so that it is tried again."""
        for k, held in enumerate(self._held):
            self._held[k] += _REST_WEIGHT * (_EXPECTED**k - held)


class WindowChoice:
    """Chooses windows of up to `most` tokens a pass in all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seconds: dict[tuple[int, int], list[float]] = {}  # of steps, by rows and tokens
        self._heads: dict[TokenHead, Acceptance] = {}
        self._of: dict[Request, Acceptance] = {}
        self._auto = 1
        self._count, self._chosen_for = 0, 0
        self._last: tuple[tuple[int, int], float] | None = None

    def widths(self, requests: Sequence[Request]) -> dict[Request, int]:
        """The window of each request of the next step."""
        rows = sum(request.rows for request in requests)
        if rows != self._chosen_for or self._count >= _EVERY:
            self._auto = self._best(requests, rows)
            self._count, self._chosen_for = 0, rows
        return self._widths(requests, rows, self._auto)

    def _widths(self, requests: Sequence[Request], rows: int, auto: int) -> dict[Request, int]:
        most, widths = self._most // rows, {}
        for request in requests:
            drafted = request.head.drafts is not None and request.matcher is None
            asked = auto if request.speculate == "auto" else int(request.speculate)
            widths[request] = max(1, min(asked, most)) if drafted else 1
        return widths

    def _best(self, requests: Sequence[Request], rows: int) -> int:
        """The window that gives the most tokens a second."""
        if not any(request.speculate == "auto" for request in requests):
            return 1
        rates = {
            width: self._rate(requests, rows, width)
            for width in WIDTHS
            if width * rows <= _MOST or width == 1
        }
        best = max(rates, key=lambda width: rates[width])
        measured = len(self._seconds.get((rows, rows), ())) >= _ENOUGH
        if best > 1 and not measured and any(key[0] == rows for key in self._seconds):
            return 1  # how long a step takes without drafts must be known, too
        return best if best == 1 or rates[best] > _GAIN * rates.get(self._auto, 0.0) else self._auto

    def _rate(self, requests: Sequence[Request], rows: int, auto: int) -> float:
        widths = self._widths(requests, rows, auto)
        tokens = sum(self._acceptance(request).tokens(width) for request, width in widths.items())
        return tokens / self._time(rows, sum(request.rows * width for request, width in widths.items()))

    def _time(self, rows: int, tokens: int) -> float:
        """The seconds of a step, as measured, or else as they should be beside those measured."""

        def expected(tokens: int) -> float:
            return 1 + (tokens - rows) / _DOUBLING

        known = {key[1]: min(times) for key, times in self._seconds.items() if key[0] == rows}
        if tokens in known:
            return known[tokens]
        scales = [seconds / expected(count) for count, seconds in known.items()]
        return expected(tokens) * (min(scales) if scales else 1.0)

    def _acceptance(self, request: Request) -> Acceptance:
        if request not in self._of:
            self._of[request] = Acceptance(self._heads.get(request.head))
        return self._of[request]

    def record(self, held: Mapping[Request, tuple[int, int]], now: float) -> None:
        """Note how many draws held, of windows of how many, of the requests of a step whose tokens came at
        `now`."""
        self._count += 1
        for request, (count, width) in held.items():
            if request.head.drafts is None or request.speculate is False:
                continue
            for one in (self._acceptance(request), self._heads.setdefault(request.head, Acceptance())):
                if width > 1:
                    one.record(count, width)
                else:
                    one.forget()
        rows = sum(request.rows for request in held)
        key = rows, sum(request.rows * width for request, (_, width) in held.items())
        if self._last is not None and self._last[0] == key:
            self._seconds.setdefault(key, []).append(now - self._last[1])
            del self._seconds[key][:-_TIMES]
        self._last = key, now

    def remove(self, request: Request) -> None:
        """Forget a request that ended."""
        self._of.pop(request, None)
        self._last = None
