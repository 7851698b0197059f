"""Clusters of vectors, and how the rows of a day are spread over them.

Decides what a cluster is: k-means on a sample of the days that it is given, where every direction counts for the same
(whitened): the few in which all texts differ would hide the topics otherwise. Which days those are, and what a share of
a cluster means for drift, is not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from batch_platform.core.monitoring.vector_sample import DIRECTIONS, Floats, VectorSample

MOST_CLUSTERS = 12
_ROWS_A_CLUSTER = 100
_MOST_ROWS = 5000
_STARTS = 3
_ROUNDS = 20
_TINY = 1e-300
# Of the rows that the clusters were fitted to so many are called far from all of them.
_FAR_SHARE = 0.02
# A direction of less than so much of the mean variance is taken for noise.
_LEAST_VARIANCE = 0.2


@dataclass(frozen=True)
class Clusters:
    """Clusters fitted to some days.

    Attributes:
        middle: (64,) mean of the rows that they were fitted to.
        scale: (64, 64) by which rows are turned and scaled.
        centres: (clusters, 64) of scaled rows, the largest cluster first.
        reach: squared distance from its nearest centre beyond which a row is far from every cluster.
    """

    middle: Floats
    scale: Floats
    centres: Floats
    reach: float

    @classmethod
    def of(cls, samples: Sequence[VectorSample]) -> Self | None:
        """Fit to as many rows of each day, at most 5,000 in all; None for too few."""
        from scipy.cluster.vq import kmeans2

        most = _MOST_ROWS // max(1, len(samples))
        rows = np.concatenate([np.empty((0, DIRECTIONS)), *(_rows(sample, most) for sample in samples)])
        count = min(MOST_CLUSTERS, len(rows) // _ROWS_A_CLUSTER)
        if count < 2:
            return None
        middle = rows.mean(axis=0)
        variances, turn = np.linalg.eigh(np.cov(rows.T))
        scale = turn / np.sqrt(np.maximum(variances, 0.0) + _LEAST_VARIANCE * variances.mean() + _TINY)
        rows = (rows - middle) @ scale
        tried = []
        for start in range(_STARTS):
            centres, _ = kmeans2(rows, count, iter=_ROUNDS, minit="++", missing="warn", rng=start)
            tried.append((float(_distances(rows, centres).min(axis=1).mean()), start, centres))
        centres = min(tried, key=lambda each: each[:2])[2]
        distances = _distances(rows, centres)
        sizes = np.bincount(distances.argmin(axis=1), minlength=count)
        order = np.argsort(-sizes, kind="stable")
        return cls(middle, scale, centres[order], float(np.quantile(distances.min(axis=1), 1 - _FAR_SHARE)))

    def counts(self, sample: VectorSample) -> tuple[Floats, float]:
        """Rows of the sample in each cluster, (clusters,), and those far from every cluster."""
        distances = _distances((sample.vectors() - self.middle) @ self.scale, self.centres)
        weights = np.array(sample.counts, float)
        in_each = np.bincount(distances.argmin(axis=1), weights, minlength=len(self.centres))
        return in_each.astype(np.float64), float(weights[distances.min(axis=1) > self.reach].sum())


def _rows(sample: VectorSample, most: int) -> Floats:
    """Vectors of a day as often as it has them, (rows, 64)."""
    return np.repeat(sample.vectors(), sample.counts, axis=0)[:most]


def _distances(rows: Floats, centres: Floats) -> Floats:
    """Squared distances, (rows, centres)."""
    squares = (rows**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    return np.maximum(squares - 2 * rows @ centres.T, 0.0)
