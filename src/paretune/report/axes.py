"""Axes of the drawings: values to pixels, with round ticks and a range that does not blow up noise."""

from collections.abc import Iterable
from dataclasses import dataclass

from paretune.report.charts import nice_ticks, tick_label, widen_range


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear axis; `start` is right of or below `end` where larger values go to the left or up."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""

    @classmethod
    def over(cls, values: Iterable[float], min_span: float, start: float, end: float) -> "Axis":
        """An axis over all the values with a margin, at least `min_span` long.

        Args:
            values: At least one finite value.
            min_span: In units of the values; differences far below it are noise, and must look small.
            start: Pixel of the low end.
            end: Pixel of the high end.
        """
        known = list(values)
        low, high = widen_range(min(known), max(known), min_span)
        margin = 0.05 * (high - low)
        return cls(low - margin, high + margin, start, end)

    def at(self, value: float) -> float:
        """Pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, max_intervals: int = 4, sign: float = 1.0) -> tuple[tuple[float, str], ...]:
        """(pixel, label) of the round values inside; labels show `sign` times the value."""
        values = nice_ticks(self.low, self.high, max_intervals)
        step = values[1] - values[0]
        return tuple((self.at(v), tick_label(sign * v, step)) for v in values if self.low <= v <= self.high)


def percent_ticks(axis: Axis, max_intervals: int = 4) -> tuple[tuple[float, str], ...]:
    """(pixel, label) of the round values inside an axis of fractions, as percentages."""
    ticks = nice_ticks(axis.low, axis.high, max_intervals)
    step = ticks[1] - ticks[0]
    ticks = [tick for tick in ticks if axis.low <= tick <= axis.high]
    return tuple((axis.at(tick), f"{tick_label(100 * tick, 100 * step)} %") for tick in ticks)
