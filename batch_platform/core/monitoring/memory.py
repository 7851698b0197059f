"""How much a day resembles the day before: the memory of each statistic's day effects, estimated over all of them.

A slow wander shows only a part of itself in the reference, and leaves its centre unsure. Both follow from the
memory phi of a first-order autoregression. One short series tells little of its own phi, many together tell a lot:
each gets a value between its own and the common one (empirical Bayes), on the careful side; the common one is
drawn to 0 where even all of them tell little.
What the values mean is not known here.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PHI = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98])
# The expectations of longer references are those of so many days: the cost grows with the square.
_MOST_DAYS = 400
# Of fewer days memory and chance cannot be told apart.
_FEWEST_DAYS = 14
# Of the variance of the residuals at least so much is taken to be between days when memory is read from it.
_FEWEST_BETWEEN = 0.05
# What varies by less than so much of its sampling does not vary: a column without nulls has always no nulls.
_STILL = 1e-3
# Statistics of one column hang together: so many tell as much as one, and what they differ by must be plain.
_STATISTICS_A_COLUMN = 3
_SIGMAS = 3.0


@dataclass(frozen=True)
class Expected:
    """What first-order autoregressions of variance 1 leave after centring by groups, for each phi of a grid.

    Attributes:
        variance: mean square of the residuals, (phis,).
        product: mean product of consecutive residuals, (phis,).
        centre: variance of the mean of all days, (phis,).
    """

    variance: Floats
    product: Floats
    centre: Floats

    @property
    def resemblance(self) -> Floats:
        """What the lag-1 autocorrelation of the residuals is on average, rising, (phis,)."""
        return np.maximum.accumulate(self.product / self.variance)

    def variance_at(self, phi: Floats) -> Floats:
        return np.interp(phi, _PHI, self.variance)

    def centre_at(self, phi: Floats) -> Floats:
        return np.interp(phi, _PHI, self.centre)


@lru_cache(maxsize=64)
def expected(groups: tuple[int, ...]) -> Expected:
    """Exact expectations by the covariance of the residuals, M F M with F = phi^|i-j| and M the centring.

    Args:
        groups: group of each reference day, in the order of time.
    """
    labels = np.array(groups[:_MOST_DAYS])
    days = len(labels)
    together = (labels[:, None] == labels[None, :]).astype(float)
    centring = np.eye(days) - together / together.sum(axis=1, keepdims=True)
    lag = np.abs(np.subtract.outer(np.arange(days), np.arange(days)))
    variance, product, centre = [], [], []
    for phi in _PHI:
        effects = phi**lag
        residuals = centring @ effects @ centring
        variance.append(np.trace(residuals) / days)
        product.append(np.diagonal(residuals, 1).sum() / (days - 1))
        centre.append(effects.mean())
    return Expected(np.array(variance), np.array(product), np.array(centre))


def memories(expected: Expected, square: Floats, product: Floats, sampling: Floats, days: int) -> Floats:
    """Memory phi of each statistic's day effects, (statistics,) 0..0.98.

    Args:
        expected: for the groups of the reference.
        square: mean square of each statistic's residuals.
        product: mean product of its consecutive residuals.
        sampling: mean variance by sampling, which has no memory.
        days: reference days.
    """
    seen = square > _STILL * sampling
    if not seen.any() or days < _FEWEST_DAYS:
        return np.zeros(len(square))
    scale = np.where(seen, square, 1.0)
    shared = ((product - sampling * expected.product[0]) / scale)[seen]
    between = ((square - sampling * expected.variance[0]) / scale)[seen]
    curve = expected.resemblance
    common = _common(shared, between, days, curve)
    reliable = np.clip(between, _FEWEST_BETWEEN, 1.0)
    noise = max(1 - common**2, _FEWEST_BETWEEN) / days / reliable**2
    own = np.clip(shared / reliable, -1.0, 1.0)
    spread = _heterogeneity(own, noise, common)
    mean = (spread * own + noise * common) / (spread + noise)
    careful = mean + np.sqrt(spread * noise / (spread + noise))
    phi = np.zeros(len(square))
    phi[seen] = np.interp(careful, curve, _PHI)
    return phi


def _common(shared: Floats, between: Floats, days: int, curve: Floats) -> float:
    """Resemblance of the day effects of all statistics together, on the curve.

    A statistic weighs by the part of its variance that is between days. Drawn to the resemblance of independent
    days by as much as the error is large beside what memory can make of it.
    """
    weights = np.clip(between, _FEWEST_BETWEEN, 1.0)
    shown = max(float((weights * between).sum()), float((weights * _FEWEST_BETWEEN).sum()))
    error = _STATISTICS_A_COLUMN / days * float((weights**2).sum()) / shown**2
    reach = (curve[-1] - curve[0]) ** 2 / 4
    found = curve[0] + (float((weights * shared).sum()) / shown - curve[0]) * reach / (reach + error)
    return float(np.clip(found, curve[0], curve[-1]))


def _heterogeneity(own: Floats, noise: Floats, common: float) -> float:
    """Variance of the true values about the common one, by moments (DerSimonian and Laird, 1986)."""
    if len(own) < 2:
        return 0.0
    weights = 1 / noise
    degrees = len(own) - 1
    surplus = float((weights * (own - common) ** 2).sum()) - degrees - _SIGMAS * np.sqrt(2 * degrees)
    return max(0.0, surplus / float(weights.sum() - (weights**2).sum() / weights.sum()))
