"""Splits: nobody in two parts, every class in every part, the same split for the same data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medtransfer.cohort import Case, Cohort
from medtransfer.errors import LeakageError, SplitError
from medtransfer.split import Split, split_by_patient

PIXELS = np.zeros((2, 2), np.uint8)


def cohort_of(patients: Sequence[object], labels: list[int], parts: list[str] | None = None) -> Cohort:
    cases = tuple(
        Case(f"case {i}", str(p), PIXELS, label=k, part=parts[i] if parts else "")
        for i, (p, k) in enumerate(zip(patients, labels, strict=True))
    )
    return Cohort(cases, tuple(str(k) for k in range(max(labels) + 1)))


def same_person(text: object) -> str:
    """The oracle: how a person would compare the ids that the tables below are made of."""
    return str(text).strip().lower().lstrip("0")


def random_table(rng: np.random.Generator) -> tuple[list[object], list[int]]:
    """Repeat visits, ids as text and number, in upper and lower case, with blanks and zeros."""
    people = int(rng.integers(24, 80))
    classes = int(rng.integers(2, 4))
    patients: list[object] = []
    labels: list[int] = []
    for person in range(1, people + 1):
        own = int(rng.integers(classes))
        for _ in range(int(rng.integers(1, 6))):
            number = f"{person:03d}"
            ways: list[object] = (
                [person, str(person), number] if person % 2 else [f"P{number}", f"p{number} ", f" P{number}"]
            )
            patients.append(ways[int(rng.integers(3))])
            labels.append(own if rng.random() < 0.85 else int(rng.integers(classes)))
    labels[:classes] = list(range(classes))
    return patients, labels


def test_a_thousand_random_tables_leak_nobody() -> None:
    refused = 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        patients, labels = random_table(rng)
        options = {"folds": int(rng.integers(2, 6))} if seed % 2 else {"val": 0.15, "test": 0.2}
        cohort = cohort_of(patients, labels)
        having = [len({same_person(p) for p, k in zip(patients, labels, strict=True) if k == c}) for c in set(labels)]
        try:
            split = split_by_patient(cohort, seed=seed, **options)  # type: ignore[arg-type]
        except SplitError:
            assert min(having) < 2 * options.get("folds", 3)  # only where a class is really rare
            refused += 1
            continue
        for fold in split.folds:
            assert sorted([*fold.train, *fold.val, *fold.test]) == list(range(len(patients)))
            owners = [{same_person(patients[i]) for i in part} for part in fold.parts()]
            assert not (owners[0] & owners[1])
            assert not (owners[0] & owners[2])
            assert not (owners[1] & owners[2])
            assert all({labels[i] for i in part} == set(labels) for part in fold.parts())
        if len(split.folds) > 1:
            assert sorted(i for fold in split.folds for i in fold.test) == list(range(len(patients)))
    assert refused < 50


def test_fractions_and_classes_are_kept() -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random(1000) < 0.2).astype(int).tolist()
    split = split_by_patient(cohort_of(list(range(1000)), labels), val=0.15, test=0.25, seed=1)
    for part, share in ((split.train, 0.6), (split.val, 0.15), (split.test, 0.25)):
        for k in (0, 1):
            assert abs(sum(labels[i] == k for i in part) - share * labels.count(k)) <= 1


def test_fractions_hold_with_repeat_visits() -> None:
    rng = np.random.default_rng(5)
    visits = rng.integers(1, 9, 200)
    patients = np.repeat(np.arange(200), visits).tolist()
    labels = np.repeat(rng.integers(0, 2, 200), visits).tolist()
    split = split_by_patient(cohort_of(patients, labels), val=0.2, test=0.2)
    for part, share in ((split.train, 0.6), (split.val, 0.2), (split.test, 0.2)):
        assert abs(len(part) / len(patients) - share) < 0.01
        assert abs(np.mean([labels[i] for i in part]) - np.mean(labels)) < 0.02


def test_row_order_does_not_matter_and_seed_does() -> None:
    rng = np.random.default_rng(0)
    patients, labels = random_table(rng)
    cohort = cohort_of(patients, labels)
    order = rng.permutation(len(cohort))
    shuffled = cohort.take(order)

    def named(c: Cohort, seed: int) -> list[set[str]]:
        return [{c[i].case_id for i in part} for part in split_by_patient(c, seed=seed).folds[0].parts()]

    assert named(cohort, 7) == named(shuffled, 7) == named(cohort, 7)
    assert named(cohort, 7) != named(cohort, 8)


def test_private_key_does_not_change_the_split(tmp_path: Path) -> None:
    """Ids from DICOM are keyed pseudonyms; two users must still get the same split."""
    program = """
from medtransfer.cohort import Case, Cohort
from medtransfer.pseudonym import pseudonym
from medtransfer.split import split_by_patient
import numpy as np
cases = tuple(Case(f"c{i}", pseudonym("patient", i // 2), np.zeros((2, 2)), label=i // 2 % 2) for i in range(60))
print(split_by_patient(Cohort(cases, ("no", "yes")), seed=4).test.indices)
"""
    found = set()
    for user in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={"MEDTRANSFER_HOME": str(tmp_path / user), "PYTHONPATH": ":".join(p for p in sys.path if p)},
            cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1
    assert len(found.pop()) > 20


def test_folds_with_validation() -> None:
    labels = [0, 1] * 50
    split = split_by_patient(cohort_of(list(range(100)), labels), folds=5, val=0.25)
    assert [len(f.test) for f in split.folds] == [20] * 5
    assert [len(f.val) for f in split.folds] == [20] * 5
    assert [(p.name, p.fold) for p in split.folds[2].parts()] == [("train", 2), ("val", 2), ("test", 2)]
    assert list(split.parts()) == [f"fold {i}" for i in range(1, 6)]
    none = split_by_patient(cohort_of(list(range(100)), labels), folds=5, val=0)
    assert [len(f.val) for f in none.folds] == [0] * 5
    with pytest.raises(SplitError, match=r"found 5 folds; fix: take split.folds\[0\]"):
        _ = split.test


def test_repeated_folds_are_drawn_anew_and_numbered_on() -> None:
    cohort = cohort_of(np.repeat(range(40), 2).tolist(), [0, 0, 1, 1] * 20)
    once, thrice = split_by_patient(cohort, folds=4), split_by_patient(cohort, folds=4, repeats=3)
    assert len(thrice.folds) == 12
    assert thrice.folds[:4] == once.folds
    assert [f.test.fold for f in thrice.folds] == list(range(12))
    for repeat in range(3):
        tested = [i for fold in thrice.folds[4 * repeat : 4 * repeat + 4] for i in fold.test]
        assert sorted(tested) == list(range(80))
    assert len({fold.test.indices for fold in thrice.folds}) == 12
    for fold in thrice.folds:
        owners = [{i // 2 for i in part} for part in fold.parts()]
        assert not owners[0] & (owners[1] | owners[2])
        assert not owners[1] & owners[2]
    assert "3 times 4 folds" in thrice.scheme


def test_inner_folds_hold_only_training_cases_of_their_outer_fold() -> None:
    cohort = cohort_of(np.repeat(range(60), 2).tolist(), [0, 0, 1, 1] * 30)
    split = split_by_patient(cohort, folds=3)
    for number, fold in enumerate(split.folds):
        part, inner = split.inner(cohort, fold=number, folds=4)
        assert set(part.aliases) == {cohort.aliases[i] for i in fold.train}
        assert len(inner.folds) == 4
        assert sorted(i for f in inner.folds for i in f.test) == list(range(len(part)))
        held_out = {cohort[i].patient_id for p in (fold.val, fold.test) for i in p}
        assert not held_out & {case.patient_id for case in part}


def test_parts_are_plain_sequences() -> None:
    part = split_by_patient(cohort_of(list(range(20)), [0, 1] * 10)).test
    assert np.asarray(part).tolist() == list(part) == list(part.indices)
    assert len(part) == len(part[:])
    assert repr(part) == f"Part(test, fold 0: {len(part)} cases)"


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([0] * 20 + [1] * 2, {}, ["patients with each class: 0 20, 1 2", "train, val, test", "val=0"]),
        ([0] * 20 + [1] * 3, {"folds": 5}, ["1 3", "folds=3 at most"]),
        ([0] * 20 + [1], {}, ["1 1", "rarest class"]),
    ],
)
def test_a_class_too_rare_says_what_fits(labels: list[int], options: dict[str, int], words: list[str]) -> None:
    with pytest.raises(SplitError) as caught:
        split_by_patient(cohort_of(list(range(len(labels))), labels), **options)  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), caught.value


def test_what_can_be_covered_is_covered() -> None:
    """Three patients of the rare class and three parts: one each, though fractions alone would give none."""
    labels = [0] * 60 + [1] * 3
    split = split_by_patient(cohort_of(list(range(63)), labels), val=0.1, test=0.1)
    assert [sum(labels[i] for i in part) for part in split.folds[0].parts()] == [1, 1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"val": 0.6, "test": 0.5},
        {"val": -0.1},
        {"test": 1.0},
        {"folds": 1},
        {"folds": 3, "official": True},
        {"repeats": 2},
        {"folds": 3, "repeats": 0},
    ],
)
def test_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(SplitError):
        split_by_patient(cohort_of(list(range(20)), [0, 1] * 10), **options)  # type: ignore[arg-type]


def test_cohort_without_labels() -> None:
    cases = tuple(Case(f"c{i}", f"p{i // 2}", PIXELS, target=float(i)) for i in range(100))
    split = split_by_patient(Cohort(cases), val=0.2, test=0.2)
    sizes = zip(split.folds[0].parts(), (60, 20, 20), strict=True)
    assert all(abs(len(part) - wanted) <= 2 for part, wanted in sizes)  # within one patient
    assert abs(np.mean([float(cases[i].target or 0) for i in split.test]) - 49.5) < 10
    with pytest.raises(SplitError):
        split_by_patient(Cohort(cases[:4]), folds=3)


def test_official_split() -> None:
    parts = ["Training"] * 10 + ["valid"] * 4 + ["TEST"] * 6
    split = split_by_patient(cohort_of(list(range(20)), [0, 1] * 10, parts), official=True)
    assert [len(p) for p in split.folds[0].parts()] == [10, 4, 6]
    parts = ["train"] * 14 + ["test"] * 6
    split = split_by_patient(cohort_of(list(range(20)), [0, 1] * 10, parts), official=True, val=0.3)
    assert split.test.indices == tuple(range(14, 20))
    assert len(split.val) == 4
    assert not len(split_by_patient(cohort_of(list(range(20)), [0, 1] * 10, parts), official=True, val=0).val)
    with pytest.raises(SplitError, match="no official parts"):
        split_by_patient(cohort_of([1, 2], [0, 1]), official=True)
    with pytest.raises(SplitError, match=r"case 2: .*found 'extra'"):
        split_by_patient(cohort_of([1, 2, 3], [0, 1, 0], ["train", "test", "extra"]), official=True)


def test_official_split_that_leaks_is_refused() -> None:
    with pytest.raises(LeakageError) as caught:
        split_by_patient(cohort_of(["P01", "P02", "p01 "], [0, 1, 0], ["train", "val", "test"]), official=True)
    message = str(caught.value)
    assert "train and test (cases 0 and 2)" in message
    assert "patient-" in message
    assert "01" not in message.split("patient-")[0]


def test_save_and_load(tmp_path: Path) -> None:
    patients, labels = random_table(np.random.default_rng(1))
    cohort = cohort_of([f"Doe^{p}" for p in patients], labels)
    path = tmp_path / "split.json"
    for split in (split_by_patient(cohort), split_by_patient(cohort, folds=3)):
        split.save(path)
        assert "Doe" not in path.read_text()
        assert "case 1" not in path.read_text()
        assert Split.load(path, cohort) == split
        assert [p.name for p in tmp_path.iterdir()] == ["split.json"]
    order = np.random.default_rng(2).permutation(len(cohort))
    moved = Split.load(path, cohort.take(order))
    first = {cohort[i].case_id for i in split.folds[0].test}
    assert {cohort[int(order[i])].case_id for i in moved.folds[0].test} == first


def test_load_refuses_what_does_not_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = cohort_of(list(np.repeat(range(20), 2)), [0, 0, 1, 1] * 10)
    split_by_patient(cohort).save(tmp_path / "s.json")
    record = json.loads((tmp_path / "s.json").read_text())

    def write(change: object) -> Path:
        (tmp_path / "t.json").write_text(change if isinstance(change, str) else json.dumps(change))
        return tmp_path / "t.json"

    for broken in ("{", "[]", "{}", json.dumps(record | {"format": "other"}), json.dumps(record | {"folds": [1]})):
        with pytest.raises(SplitError, match=r"t\.json: this is not a split file"):
            Split.load(write(broken), cohort)
    with pytest.raises(SplitError, match="not a split file"):
        Split.load(tmp_path / "absent.json", cohort)
    with pytest.raises(SplitError, match="2 of 40 unknown"):
        Split.load(tmp_path / "s.json", cohort.take(range(38)))
    fold = record["folds"][0]
    leaking = {**fold, "train": fold["train"][1:], "test": [*fold["test"], fold["train"][0]]}
    with pytest.raises(LeakageError, match="train and test"):
        Split.load(write(record | {"folds": [leaking]}), cohort)
    twice = {**fold, "test": [*fold["test"], fold["train"][0]]}
    with pytest.raises(SplitError, match="1 twice"):
        Split.load(write(record | {"folds": [twice]}), cohort)
    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "another user"))
    with pytest.raises(SplitError, match="private key"):
        Split.load(tmp_path / "s.json", cohort_of([c.patient_id for c in cohort], cohort.labels.tolist()))


def test_save_into_nowhere(tmp_path: Path) -> None:
    split = split_by_patient(cohort_of(list(range(20)), [0, 1] * 10))
    with pytest.raises(SplitError, match=r"split\.json: the split cannot be written"):
        split.save(tmp_path / "absent" / "split.json")


def test_check_refuses_another_cohort() -> None:
    a, b = cohort_of(list(range(20)), [0, 1] * 10), cohort_of(list(range(20)), [1, 0] * 10)
    split_by_patient(a).check(a)
    with pytest.raises(SplitError, match="another cohort"):
        split_by_patient(a).check(b)


def test_table1_by_part() -> None:
    cohort = cohort_of(list(range(40)), [0, 1] * 20)
    found = cohort.table1(split_by_patient(cohort, val=0.25, test=0.25))
    assert found["columns"] == ["all", "train", "val", "test"]
    assert found["rows"][0] == ["cases", "40", "20", "10", "10"]
    assert Counter(row[0] for row in found["rows"]) == Counter(["cases", "patients", "0", "1"])
