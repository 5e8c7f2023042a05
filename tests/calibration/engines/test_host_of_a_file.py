"""One factor on all host times of a file explains most of its errors (serving-engines.md)."""

from __future__ import annotations

import numpy as np
import pytest
from published_errors import PROFILE, Figures, figures, record_path

from calibration.engines.fitting.groups import grouped
from calibration.engines.judged import SLOWEST_HOST
from calibration.engines.reading import read_engine_records

DELAYED = 1.05  # by the slowest host
FACTORS = np.arange(0.8, 2.6, 0.02)


def errors_by_factor(name: str) -> np.ndarray:
    """ln(predicted / measured) of points that a slow host delays; a row per factor, first of 1."""
    groups = grouped(read_engine_records([record_path(name)]).points, "h200")
    passes = [group.passes_s(PROFILE) for group in groups]
    measured = np.concatenate([group.measured_s for group in groups])

    def seconds(factor: float) -> np.ndarray:
        pairs = zip(groups, passes, strict=True)
        return np.concatenate([p + g.waits(PROFILE, p, factor) for g, p in pairs])

    delayed = seconds(SLOWEST_HOST) > DELAYED * np.concatenate(passes)
    return np.array([np.log(seconds(k) / measured)[delayed] for k in (1.0, *FACTORS)])


@pytest.mark.parametrize(
    ("name", "factor", "without", "beyond", "with_it", "still"),
    [
        ("h200-quiet", 1.00, (42, 1.2, -14.9), 0, (42, 1.2, -14.9), 0),
        ("h200-seed6301", 1.18, (32, 8.9, -25.6), 5, (32, 3.1, 24.8), 6),
        ("h200-seed5201", 1.28, (28, 10.8, -26.8), 12, (28, 3.9, -19.2), 1),
        ("h200-exported-graphs", 1.36, (22, 6.7, -38.3), 2, (22, 2.1, -29.7), 2),
        ("h200-tp2-processes", 1.56, (21, 31.3, -43.5), 17, (21, 6.9, -21.9), 3),
        ("h200-processes", 1.66, (14, 31.0, -46.9), 13, (14, 8.8, 30.5), 4),
        ("h200-seed4101", 1.78, (51, 29.4, -54.1), 38, (51, 6.8, -37.7), 15),
        ("h200-disturbed", 1.90, (27, 39.4, -55.8), 19, (27, 8.5, 36.7), 8),
    ],
)
def test_one_factor_per_file_leaves_the_published_errors(
    name: str, factor: float, without: Figures, beyond: int, with_it: Figures, still: int
) -> None:
    as_predicted, *others = errors_by_factor(name)
    best = min(range(len(FACTORS)), key=lambda i: float(np.abs(others[i]).sum()))
    assert FACTORS[best] == pytest.approx(factor, abs=0.001)
    for errors, published, most in (
        (as_predicted, without, beyond),
        (others[best], with_it, still),
    ):
        percents = 100.0 * np.expm1(errors)
        assert figures(list(percents)) == pytest.approx(published, abs=0.06)
        assert int((np.abs(percents) > 15.0).sum()) == most
