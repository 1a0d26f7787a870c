"""Mistakes that newcomers make: read rightly, or told with the key to change and what is allowed."""

import pytest
from PIL import Image as Picture

from medtransfer import Cohort
from medtransfer.config import Experiment
from medtransfer.errors import CohortError, ConfigError
from medtransfer.external import check_share
from medtransfer.table import read_table


@pytest.fixture
def table(tmp_path):
    """Write a table of these rows, as a spreadsheet set to German does, beside its images."""

    def go(head, *rows):
        for i in range(len(rows)):
            Picture.new("L", (4, 4)).save(tmp_path / f"{i}.png")
        lines = [f"image;patient_id;{head}", *(f"{i}.png;0{i};{row}" for i, row in enumerate(rows))]
        (tmp_path / "t.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
        return tmp_path / "t.csv"

    return go


def test_decimal_commas_are_read_as_spreadsheets_write_them(table, tmp_path):
    path = table("volumen;alter;dosis", "0,5;61,5;1,25", "1.234,75;70;2", ";58,0;0,5", "12;61;")
    cohort = Cohort.from_csv(path, root=tmp_path, target="volumen", covariates=["alter", "dosis"])
    assert [c.patient_id for c in cohort] == ["00", "01", "03"]  # the row without a number is left out
    assert cohort.references[:, 0].tolist() == [0.5, 1234.75, 12]
    assert [c.covariates.get("dosis") for c in cohort] == ["1.25", "2", None]
    assert [c.covariates["alter"] for c in cohort] == ["61.5", "70", "61"]


def test_an_age_with_a_comma_is_a_number(table, tmp_path):
    cohort = Cohort.from_csv(table("label;age", "ja;61,5", "nein;70"), root=tmp_path)
    assert [c.covariates["age"] for c in cohort] == ["61.5", "70"]


def test_what_a_comma_means_is_not_guessed(table, tmp_path):
    with pytest.raises(CohortError, match=r"t.csv line 2: .*column 'ml'.*'1,234'.*decimal point"):
        Cohort.from_csv(table("ml", "1,234", "2,500"), root=tmp_path, target="ml")
    mixed = table("ml", "1,5", "2.5")
    with pytest.raises(CohortError, match=r"line 2.*must hold numbers.*'1,5'.*0,5 in every row"):
        Cohort.from_csv(mixed, root=tmp_path, target="ml")
    assert [r["ml"] for r in read_table(mixed).rows] == ["1,5", "2.5"]  # cells are text until a number is asked for
    findings = table("befund", "1,2", "2,3")
    assert [r["befund"] for r in read_table(findings).rows] == ["1,2", "2,3"]


def test_a_missing_column_and_a_missing_root_name_their_key(table, tmp_path):
    path = table("diagnose", "ja", "nein")
    with pytest.raises(CohortError, match=r"no column 'diagnosis'.*did you mean 'diagnose'\? cohort.label"):
        Cohort.from_csv(path, root=tmp_path, label="diagnosis")
    with pytest.raises(CohortError, match=r"no column 'part'.*fix: .*cohort.part says which"):
        Cohort.from_csv(path, root=tmp_path, label="diagnose", part="part")
    with pytest.raises(CohortError, match=r"cohort.root: the root folder .*'nowhere'.*'data' of the config"):
        Cohort.from_csv(path, root=tmp_path / "nowhere", label="diagnose")


@pytest.mark.parametrize(("share", "says"), [(30, "0.3 for 30 %"), (1, "0.3 for 30 %"), (0, "between 0 and 1"),
                                             (-0.2, "between 0 and 1"), (5.5, "0.055 for 5.5 %")])  # fmt: skip
def test_a_share_that_is_none_is_told_what_is_meant(share, says):
    with pytest.raises(ConfigError, match=rf"--recalibrate.*{says}"):
        check_share(share)


def config(**sections):
    given = {"cohort": "{csv: t.csv}", "model": "{weights: random/resnet18}", "out": "run"} | sections
    return "\n".join(f"{k}: {v}" for k, v in given.items())


@pytest.mark.parametrize("rule", ["youdn", "sensitivity=0.9", "sensitivity>=90", "0,5", "cost"])
def test_a_threshold_typed_wrong_is_told_what_is_allowed(rule):
    with pytest.raises(ConfigError, match=r"line 4, evaluate.threshold.*youden, sensitivity>=0.9, .*cost=5.*0.35"):
        Experiment.from_text(config(evaluate=f"{{threshold: '{rule}'}}"))


@pytest.mark.parametrize("rule", ["youden", "sensitivity>=0.9", "specificity>=.95", "cost=5", "0.35", ".5"])
def test_thresholds_that_are_allowed(rule):
    text = config(evaluate=f"{{threshold: '{rule}'}}")
    assert Experiment.from_text(text).settings["evaluate"].threshold == rule


@pytest.mark.parametrize(("name", "meant"), [("imagnet/resnet50", "imagenet/resnet50"),
                                             ("embedded/compact2", "embedded/compact2d"),
                                             ("randm/resnet18", "random/resnet18")])  # fmt: skip
def test_weights_of_an_unknown_name_are_told_the_nearest(name, meant):
    from medtransfer.backbones.sources import find
    from medtransfer.errors import WeightsError

    with pytest.raises(WeightsError, match=rf"model.weights: there are no weights '{name}'.*did you mean '{meant}'"):
        find(name)


def test_a_comparison_without_covariates_says_so():
    import numpy as np

    from medtransfer.predictions import Predictions
    from medtransfer.strategies import judged

    rng = np.random.default_rng(0)
    ids = np.array([f"c{i}" for i in range(40)])
    said = rng.random(40)
    p = Predictions(
        ids, ids, np.arange(40) % 2, np.stack([1 - said, said], 1), ("no", "yes"), np.zeros(40, int), "test"
    )
    found = judged({"scratch": p, "probe": p}, bootstrap=100)
    assert "'metadata only' is not compared: the cohort has no covariate" in str(found)
    assert found.to_record()["notes"] == list(found.notes)
    assert judged({"scratch": p, "metadata only": p}, bootstrap=100).notes == ()
