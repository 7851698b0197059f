"""What other rules make of the same tables of rows, for `drift_simulation.py`.

Each compares a day with a sample of 5,000 rows of the reference, as people do: Evidently's own tests and limits, which
the library itself chooses and runs; Kolmogorov-Smirnov and chi-square with Benjamini-Hochberg at 0.05; PSI > 0.2;
the day's mean beyond 3 standard deviations of the reference days' means.
"""

from collections.abc import Sequence
from datetime import date

import numpy as np
from drift_streams import Table
from scipy.stats import chi2_contingency, ks_2samp

SAMPLE = 5000
RULES = (
    "Evidently's defaults, any column",
    "Evidently's defaults, half of the columns",
    "KS, chi2 + BH 0.05",
    "PSI > 0.2",
    "mean + 3 sd",
)


def alarms(
    reference: Sequence[tuple[date, Table]], days: Sequence[tuple[date, Table]]
) -> dict[str, list[bool]]:
    """Alarms of each rule by day."""
    random = np.random.default_rng(0)
    pooled = {name: np.concatenate([table[name] for _, table in reference]) for name in reference[0][1]}
    pooled = {
        name: random.choice(values, min(SAMPLE, len(values)), replace=False)
        for name, values in pooled.items()
    }
    means = {name: np.array([np.nanmean(table[name]) for _, table in reference]) for name in pooled}
    found: dict[str, list[bool]] = {name: [] for name in RULES}
    for _, table in days:
        p, psi, large, drifted = [], [], [], []
        for name, sample in pooled.items():
            known, now = (values[np.isfinite(values)] for values in (sample, table[name]))
            is_category = name[0] == "c"
            drifted.append(evidently(known, now, is_category))
            p.append(_p(known, now, is_category))
            psi.append(_psi(*_binned(known, now, is_category)))
            mean = means[name]
            large.append(abs(np.nanmean(table[name]) - mean.mean()) > 3 * mean.std(ddof=1))
        ranked = np.sort(p)
        found["KS, chi2 + BH 0.05"].append(bool((ranked <= 0.05 * np.arange(1, len(p) + 1) / len(p)).any()))
        found["PSI > 0.2"].append(max(psi) > 0.2)
        found["mean + 3 sd"].append(any(large))
        found["Evidently's defaults, any column"].append(any(drifted))
        found["Evidently's defaults, half of the columns"].append(bool(np.mean(drifted) >= 0.5))
    return found


def evidently(known: np.ndarray, now: np.ndarray, is_category: bool) -> bool:
    """What Evidently's test says, chosen by Evidently for this column."""
    import pandas as pd
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    kind = ColumnType.Categorical if is_category else ColumnType.Numerical
    reference, current = pd.Series(known), pd.Series(now)
    return bool(get_stattest(reference, current, kind, None)(reference, current, kind, None).drifted)


def evidently_of_embeddings(known: np.ndarray, now: np.ndarray) -> bool:
    """What Evidently's default for embeddings says: a classifier that tells the day from the reference."""
    import pandas as pd
    from evidently.legacy.metrics.data_drift.embedding_drift_methods import model

    method = model(bootstrap=len(known) < 1000)
    return bool(method(pd.DataFrame(now), pd.DataFrame(known))[1])


def _p(known: np.ndarray, now: np.ndarray, is_category: bool) -> float:
    if is_category:
        table = np.stack(_binned(known, now, True)) + 0.5
        return float(chi2_contingency(table).pvalue)
    return float(ks_2samp(known, now, method="asymp").pvalue)  # the exact p takes minutes


def _binned(known: np.ndarray, now: np.ndarray, is_category: bool) -> tuple[np.ndarray, np.ndarray]:
    if is_category:
        levels = int(max(known.max(), now.max())) + 1
        return np.bincount(known, minlength=levels), np.bincount(now, minlength=levels)
    edges = np.unique(np.quantile(known, np.linspace(0, 1, 11)))[1:-1]
    first, second = (np.bincount(np.searchsorted(edges, x), minlength=len(edges) + 1) for x in (known, now))
    return first, second


def _psi(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.maximum(x / x.sum(), 1e-4) for x in (a, b))
    return float(((b - a) * np.log(b / a)).sum())
