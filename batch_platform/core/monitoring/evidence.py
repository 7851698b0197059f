"""How far the last days lie from what is normal: one day alone, and the mean of several days in a row.

Decides which windows are looked at and how sure each mean is. What is enough for an alert `decision` decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Self

import numpy as np
import numpy.typing as npt

from batch_platform.core.monitoring.normal import DayValues, Fit, Normal

Floats = npt.NDArray[np.float64]

# A change that is small beside the scatter of days is seen by what several days have in common.
WINDOWS = (1, 3, 7)
LONGEST_WINDOW = max(WINDOWS)
# In a mean over days no day counts for more than so many of its spreads: one odd day is no trend.
_CLIP = 3.5
_LIKE_A_BELL = 1e6
_TINY = 1e-300


@dataclass(frozen=True)
class Evidence:
    """Deviations of the windows that end with one day; (windows, statistics) each, NaN where there are none.

    Attributes:
        effect: mean deviation from the centres.
        z: the same in units of its expected spread, where no day counts for more than a few of its spreads.
        p: two-sided, by Student's t; its degrees of freedom by Satterthwaite (Biometrics 2, 1946).
        spread: the expected spread.
        degrees: its degrees of freedom.
    """

    effect: Floats
    z: Floats
    p: Floats
    spread: Floats
    degrees: Floats

    @classmethod
    def of(
        cls, normal: Normal, moments: Sequence[date], days: Sequence[DayValues], strictness: float
    ) -> Self:
        """Evidence on the last of these days, which are in the order of time.

        Args:
            normal: what is usual.
            moments: of the days; a window reaches back as far as they do.
            days: their statistics.
            strictness: how often the spread between days is taken.
        """
        from scipy.special import stdtr

        windows = [_window(normal, width, moments[-width:], days[-width:], strictness) for width in WINDOWS]
        effect, clipped, spread, degrees = (np.array(parts) for parts in zip(*windows, strict=True))
        z = clipped / spread
        return cls(effect, z, 2 * stdtr(degrees, -np.abs(z)), spread, degrees)


def _window(
    normal: Normal, width: int, moments: Sequence[date], days: Sequence[DayValues], strictness: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """Effect, clipped effect, spread and degrees of freedom of one window, (statistics,) each."""
    fit, groups = normal.fit_for(moments)
    values = np.array([day.values for day in days])
    present = np.isfinite(values)
    noise = np.where(present, np.array([day.sampling for day in days]), 0.0)
    away = np.where(present, values - fit.centres[groups], 0.0)
    counted = away
    if width > 1:
        of_a_day = strictness**2 * (fit.between + fit.unsure[groups] + fit.common) + noise
        counted = np.clip(away, -_CLIP * np.sqrt(of_a_day), _CLIP * np.sqrt(of_a_day))
    weights = present / (fit.between * (1 - fit.memory) + noise + _TINY)
    weights = weights / np.maximum(weights.sum(axis=0), _TINY)
    between = strictness**2 * _between(fit, groups, weights) + _TINY
    variance = between + (weights**2 * noise).sum(axis=0)
    degrees = np.minimum(fit.degrees * (variance / between) ** 2, _LIKE_A_BELL)
    # Of a first day alone the longer windows say nothing: it would pass for several.
    seen = present[-1] & (width == 1 or len(days) > 1)
    effect = np.where(seen, (weights * away).sum(axis=0), np.nan)
    return effect, np.where(seen, (weights * counted).sum(axis=0), np.nan), np.sqrt(variance), degrees


def _between(fit: Fit, groups: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """Variance of the weighted mean of days by their own effects, which have a memory, and by the centres."""
    carried, effects = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for weight in weights:
        # sum over i, j of w_i w_j memory^|i-j|, one day after the other
        effects += weight**2 + 2 * weight * fit.memory * carried
        carried = fit.memory * carried + weight
    centres = sum(
        weights[groups == group].sum(axis=0) ** 2 * fit.unsure[group] for group in np.unique(groups)
    )
    return fit.between * effects + fit.common + centres
