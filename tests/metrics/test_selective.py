"""Risk–coverage against the definition written out with a loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medtransfer.metrics.intervals import ClusterBootstrap
from medtransfer.metrics.selective import confidence, selective


def by_definition(wrong: np.ndarray, sure: np.ndarray) -> float:
    order = np.argsort(-sure)
    return float(np.mean([wrong[order][:i].mean() for i in range(1, len(wrong) + 1)]))


def once(n: int) -> ClusterBootstrap:
    return ClusterBootstrap(np.arange(n), np.ones((1, n), dtype=np.uint16))


@pytest.mark.parametrize("seed", range(4))
def test_area_by_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wrong, sure = rng.random(60) < 0.3, rng.random(60)
    found, _ = selective(wrong, sure, once(60))
    assert found.estimates["aurc"].value == pytest.approx(by_definition(wrong, sure), abs=1e-12)
    best = by_definition(wrong, ~wrong + rng.random(60) * 0.1)
    assert found.estimates["excess_aurc"].value == pytest.approx(by_definition(wrong, sure) - best, abs=1e-12)
    perfect, _ = selective(wrong, ~wrong + rng.random(60) * 0.1, once(60))
    assert perfect.estimates["excess_aurc"].value == pytest.approx(0, abs=1e-12)


def test_ties_and_weights_are_the_mean_over_orders() -> None:
    wrong, sure = np.array([1, 0, 0, 1, 0]), np.array([0.9, 0.9, 0.9, 0.4, 0.4])
    every = [
        by_definition(wrong, sure + 1e-3 * np.array(shift)) for shift in itertools.permutations(range(5))
    ]  # each order of the ties equally often
    found, table = selective(wrong, sure, once(5))
    assert found.estimates["aurc"].value == pytest.approx(np.mean(every), abs=1e-12)
    assert dict(table)[0.5]["error"].value == pytest.approx(1 / 3)
    # a case drawn twice is two tied cases
    times = np.array([[2, 1, 0, 1, 3]])
    drawn, _ = selective(wrong, np.arange(5.0), ClusterBootstrap(np.arange(5), times.astype(np.uint16)))
    again = np.repeat(np.arange(5), times[0])
    flat, _ = selective(wrong[again], again.astype(float), once(7))
    assert drawn.draws["aurc"][0] == pytest.approx(flat.estimates["aurc"].value, abs=1e-12)


def test_deferral_table_by_counting() -> None:
    rng = np.random.default_rng(3)
    y = rng.random(200) < 0.4
    p = np.clip(0.3 + 0.4 * y + rng.normal(size=200) * 0.2, 0.01, 0.99)
    called, sure = p >= 0.4, confidence(np.c_[1 - p, p], 0.4)
    found, table = selective(called != y, sure, ClusterBootstrap.draw(np.arange(200), resamples=100), y)
    assert set(found.estimates) == {"aurc", "excess_aurc"}
    for coverage, row in table:
        keep = np.argsort(-sure)[: round(coverage * 200)]
        assert row["error"].value == pytest.approx((called != y)[keep].mean())
        assert row["sensitivity"].value == pytest.approx(called[keep][y[keep]].mean())
        assert row["specificity"].value == pytest.approx((~called)[keep][~y[keep]].mean())
        assert row["error"].low <= row["error"].value <= row["error"].high
    curve = found.curves["risk_coverage"]
    assert curve["y"][-1] == pytest.approx((called != y).mean())


def test_nobody_of_a_kind_is_not_defined() -> None:
    _, table = selective([0, 1, 0], [0.9, 0.5, 0.7], ClusterBootstrap.draw(range(3), resamples=20), [1, 1, 1])
    assert all(row["specificity"].value is None for _, row in table)


def test_confidence_is_share_of_the_way_to_the_end() -> None:
    p = np.array([[0.8, 0.2], [1.0, 0.0], [0.0, 1.0], [0.4, 0.6]])
    np.testing.assert_allclose(confidence(p, 0.2), [0, 1, 1, 0.5], atol=1e-12)
    np.testing.assert_allclose(confidence(p), [0.8, 1, 1, 0.6])
