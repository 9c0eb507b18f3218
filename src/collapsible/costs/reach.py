"""Which input places one output place looks at, along one axis, exactly.

Far from the borders a network treats all places alike, up to a period: behind a depth to space
by two, even and odd places look at different inputs. A ``Reach`` holds one period.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction


class Unknown(Exception):  # noqa: N818 - it carries a reason, it is not a fault
    """The receptive field is not finite, or not known; the message says why."""


@dataclass(frozen=True)
class Reach:
    """Place o of a map looks at the inputs ``low[p] + step * q`` to ``high[p] + step * q``.

    With P places in a period, q and p are the quotient and remainder of o by P. ``axis`` is the
    input's. Places that look at nothing have an infinite low.
    """

    axis: int
    step: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def period(self) -> int:
        return len(self.low)

    def at(self, place: int) -> tuple[float, float]:
        turn, phase = divmod(place, self.period)
        return self.low[phase] + self.step * turn, self.high[phase] + self.step * turn

    def gather(self, period: int, advance: int, taps: Iterable[Iterable[int]]) -> Reach:
        """The reach of a map whose place p of ``period`` looks at the places ``taps[p]`` of this.

        The next period looks ``advance`` places further, a multiple of this map's period.
        """
        lows, highs = [], []
        for places in taps:
            spans = [self.at(place) for place in places]
            lows.append(min((low for low, _ in spans), default=math.inf))
            highs.append(max((high for _, high in spans), default=-math.inf))
        return Reach(self.axis, self.step * advance // self.period, tuple(lows), tuple(highs))

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> Reach:
        """Behind a convolution or pooling."""
        period = self.period // math.gcd(self.period, stride)
        return self.gather(
            period,
            stride * period,
            [[p * stride - padding + k * dilation for k in range(kernel)] for p in range(period)],
        )

    def transposed(self, kernel: int, stride: int, padding: int, dilation: int) -> Reach:
        """Behind a transposed convolution: input i writes to i * stride - padding + ..."""
        period = self.period * stride
        taps = [
            [
                (p + padding - k * dilation) // stride
                for k in range(kernel)
                if (p + padding - k * dilation) % stride == 0
            ]
            for p in range(period)
        ]
        return self.gather(period, self.period, taps)

    def resample(self, ratio: Fraction, before: int, after: int, centred: bool) -> Reach:
        """Behind an interpolation; ``ratio`` is input places to an output place.

        Reads the places from ``before`` left of the source's floor to ``after`` right of it.
        """
        turns = self.period // math.gcd(self.period, ratio.numerator)
        period = ratio.denominator * turns
        taps = []
        for p in range(period):
            source = (p + Fraction(1, 2)) * ratio - Fraction(1, 2) if centred else p * ratio
            floor = math.floor(source)
            exact = source == floor
            taps.append([floor] if exact else list(range(floor - before, floor + after + 1)))
        return self.gather(period, ratio.numerator * turns, taps)

    def join(self, other: Reach) -> Reach:
        """Where two maps meet place by place: whatever either looks at."""
        if self.axis != other.axis:
            raise Unknown("the picture's axes are mixed")
        if self.step * other.period != other.step * self.period:
            raise Unknown("branches of different strides meet")
        period = math.lcm(self.period, other.period)
        both = [(self.at(p), other.at(p)) for p in range(period)]
        return Reach(
            self.axis,
            self.step * period // self.period,
            tuple(min(a[0], b[0]) for a, b in both),
            tuple(max(a[1], b[1]) for a, b in both),
        )

    def extent(self) -> tuple[int, int, int, Fraction]:
        """Size, reach before and after the place itself, and stride, in input places."""
        stride = Fraction(self.step, self.period)
        spans = zip(self.low, self.high, strict=True)
        seen = [
            (math.floor(place * stride), int(low), int(high))
            for place, (low, high) in enumerate(spans)
            if low <= high
        ]
        if not seen:
            raise Unknown("no output looks at the input")
        return (
            max(high - low + 1 for _, low, high in seen),
            max(place - low for place, low, _ in seen),
            max(high - place for place, _, high in seen),
            stride,
        )
