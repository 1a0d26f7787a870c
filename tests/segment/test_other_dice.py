"""Another tool's Dice beside the run's: means, differences, p values and refusals, against hand and SciPy."""

import json

import numpy as np
import pytest
from scipy.stats import permutation_test

from medtransfer.errors import DataError, MetricError
from medtransfer.segment.beside import beside, sign_test


def test_differences_are_paired_and_cases_without_a_value_stay_out():
    ours, texts = [0.9, 0.8, 0.7, np.nan, 0.6], ["0.8", " 0.9 ", "", "0.5", None]
    found = beside("tool", "liver", "abcde", ["p", "q", "r", "s", "t"], ours, texts, bootstrap=200)
    assert found.cases == ("a", "b")
    assert found.left_out == 3
    assert found.mean.value == pytest.approx(0.85)
    assert found.other.value == pytest.approx(0.85)
    assert found.difference.value == pytest.approx(0.0)
    record = json.loads(json.dumps(found.to_json()))
    assert [p["theirs"] for p in record["pairs"]] == [0.8, 0.9]


def test_the_interval_resamples_patients_not_cases():
    rng = np.random.default_rng(0)
    by_patient = rng.normal(0.02, 0.05, 30)
    gap = np.repeat(by_patient, 4)  # four equal cases a patient say no more than one
    theirs = np.full(120, 0.5)
    who = [f"p{i // 4}" for i in range(120)]
    many = beside("t", "s", list(map(str, range(120))), who, theirs + gap, [f"{v}" for v in theirs])
    once = beside("t", "s", list(map(str, range(30))), who[::4], 0.5 + by_patient, ["0.5"] * 30)
    for end in ("low", "high"):
        assert getattr(many.difference, end) == pytest.approx(getattr(once.difference, end), abs=0.004)
    assert many.p == pytest.approx(once.p, abs=0.02)


@pytest.mark.parametrize("n", [5, 10, 40])
def test_the_p_value_is_that_of_exchanged_signs(n):
    rng = np.random.default_rng(n)
    gap = rng.normal(0.3, 1, n)
    wanted = permutation_test((gap,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1).pvalue
    assert sign_test(gap, np.arange(n)) == pytest.approx(wanted, abs=0.015)


def test_p_is_never_zero_and_not_defined_for_one_patient():
    assert sign_test(np.ones(50), np.arange(50)) == 1 / 10_001
    assert sign_test([0.1, 0.2], ["a", "a"]) is None
    assert sign_test([0.0, 0.0], ["a", "b"]) == 1.0


def test_cells_that_are_no_dice_and_empty_columns_are_refused():
    for cell in ("high", "1.2", "-0.1", "nan"):
        with pytest.raises(DataError, match="no Dice") as error:
            beside("tool", "liver", ["case-1"], ["p"], [0.9], [cell])
        assert cell not in str(error.value).replace("a number", "")
    with pytest.raises(MetricError, match="no tested case"):
        beside("tool", "liver", ["case-1"], ["p"], [0.9], [""])


def test_a_column_in_percent_is_known_by_its_median():
    shares = beside("tool", "liver", "abcd", "pqrs", [0.9, 0.8, 0.7, 0.6], ["0.92", "0.81", "", "0.005"])
    hundreds = beside("tool", "liver", "abcd", "pqrs", [0.9, 0.8, 0.7, 0.6], ["92", "81.0", "", "0.5"])
    assert hundreds.theirs == pytest.approx(shares.theirs)
    assert hundreds.percent
    assert not shares.percent
    with pytest.raises(DataError, match="no Dice"):
        beside("tool", "liver", "abc", "pqr", [0.9, 0.8, 0.7], ["0.9", "0.8", "92"])
