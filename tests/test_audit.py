"""The audit: planted and real copies, leaks, contradictions."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medtransfer._copies import look, near_pairs
from medtransfer.audit import Audit, audit
from medtransfer.cohort import Case, Cohort
from medtransfer.errors import CohortError, ConfigError, LeakageError, ReadError
from medtransfer.image import Geometry, Image
from medtransfer.split import Split, split_by_patient

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
Pixels = NDArray[np.generic]


def pictures(n: int, seed: int = 0, side: int = 96) -> NDArray[np.uint8]:
    """Images that share an anatomy (an oval with two dark fields) and differ in their texture."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = 1.5 * (x**2 + 1.3 * y**2 < 0.8) - 0.9 * ((np.abs(x) - 0.4) ** 2 * 4 + y**2 * 2 < 0.25)
    out = np.empty((n, side, side))
    for k in range(n):
        texture = gaussian_filter(rng.normal(size=(side, side)), side / 24)
        out[k] = gaussian_filter(body, 1.5) + 0.35 * texture / texture.std()
    low, high = out.min(), out.max()
    return np.round((out - low) / (high - low) * 255).astype(np.uint8)


def cohort_of(
    images: list[Pixels], labels: list[int] | None = None, parts: list[str] | None = None, **more: list[str]
) -> Cohort:
    patients = more.get("patients") or [f"p{i}" for i in range(len(images))]
    cases = tuple(
        Case(
            f"c{i}", patients[i], image, label=labels[i] if labels else i % 2, part=parts[i] if parts else "",
            covariates={key: values[i] for key, values in more.items() if key != "patients"},
        )
        for i, image in enumerate(images)
    )  # fmt: skip
    return Cohort(cases, ("no", "yes"))


def counts(found: Audit) -> dict[str, int]:
    return {f.name: f.count for f in found.findings}


def halves(n: int) -> list[str]:
    """First half train, second half test."""
    return ["train"] * (n // 2) + ["test"] * (n - n // 2)


def test_two_hundred_planted_copies_are_all_found() -> None:
    images = [*pictures(400, side=32)]
    planted: list[Pixels] = [x.astype([np.int16, np.float64, np.uint8][i % 3]) for i, x in enumerate(images[:200])]
    cohort = cohort_of([*images, *planted], labels=[0, 1] * 300, parts=["train"] * 400 + ["test"] * 200)
    found = audit(cohort, Split.from_column(cohort), progress=False)
    assert counts(found) == {"duplicate_across_parts": 200}
    wanted = {cohort[i].alias for i in [*range(200), *range(400, 600)]}
    assert set(found.findings[0].cases) == wanted
    assert "200 in train and test" in found.findings[0].message
    with pytest.raises(LeakageError, match=r"audit: \{accept: \[duplicate_across_parts\]\}") as caught:
        found.raise_for_errors()
    assert "200 images" in str(caught.value)
    audit(cohort, Split.from_column(cohort), accept=["duplicate_across_parts"], progress=False).raise_for_errors()


def window(low: float, high: float) -> Callable[[Pixels], Pixels]:
    return lambda x: np.round(np.clip((x.astype(float) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def resized(rows: int, cols: int) -> Callable[[Pixels], Pixels]:
    from PIL import Image as Picture

    def change(x: Pixels) -> Pixels:
        return np.asarray(Picture.fromarray(x.astype(np.float32)).resize((cols, rows), Picture.Resampling.BILINEAR))

    return change


def stored(form: str, **options: object) -> Callable[[Pixels], Pixels]:
    from PIL import Image as Picture

    def change(x: Pixels) -> Pixels:
        file = io.BytesIO()
        low, high = float(x.min()), float(x.max())
        Picture.fromarray(window(low, high)(x).astype(np.uint8)).save(file, form, **options)  # type: ignore[arg-type]
        return np.asarray(Picture.open(file))

    return change


def after(*steps: Callable[[Pixels], Pixels]) -> Callable[[Pixels], Pixels]:
    def change(x: Pixels) -> Pixels:
        for step in steps:
            x = step(x)
        return x

    return change


def flip(*axes: int) -> Callable[[Pixels], Pixels]:
    return lambda x: np.flip(x, axes)


CHANGES = {
    "window": window(60, 180),
    "gamma": lambda x: np.sqrt(x.astype(float)),
    "jpeg": stored("JPEG", quality=60),
    "left-right": flip(1),
    "up-down": flip(0),
    "both": flip(0, 1),
    "half size": resized(48, 48),
    "larger": resized(150, 150),
    "inverted": lambda x: 255 - x,
    "all": after(resized(64, 64), window(60, 200), flip(1), stored("JPEG", quality=75)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_copies_of_a_phantom(name: str) -> None:
    images = [*pictures(120)]
    copies = [CHANGES[name](x) for x in images[:30]]
    looks = [look(Image(np.asarray(x))) for x in [*images, *copies]]
    pairs = {(i, j) for i, j, _ in near_pairs(np.stack([seen.thumbnail for seen in looks]))}
    wanted = {(i, 120 + i) for i in range(30)}
    assert len(pairs & wanted) >= 29
    assert len({k for p in pairs - wanted for k in p}) <= 1


def test_near_copies_of_volumes_and_few_images() -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    volumes = [gaussian_filter(rng.normal(size=(24, 20, 18)), 2) for _ in range(20)]
    copies = [
        volumes[0][::-1],
        volumes[1][:, ::-1, ::-1],
        np.clip(volumes[2] * 300, -20, 20),
        volumes[3][::2, ::2, ::2],
    ]
    looks = [look(Image(np.ascontiguousarray(v), Geometry(affine=np.eye(4)))) for v in [*volumes, *copies]]
    pairs = {(i, j) for i, j, _ in near_pairs(np.stack([seen.thumbnail for seen in looks]))}
    assert pairs == {(0, 20), (1, 21), (2, 22), (3, 23)}
    two = np.stack([look(Image(x)).thumbnail for x in pictures(2)])
    assert near_pairs(two) == []
    assert near_pairs(two[:1]) == []
    assert [p[:2] for p in near_pairs(np.stack([two[0], two[0][:, ::-1]]))] == [(0, 1)]


def test_inverted_storage_and_padding_are_seen_through() -> None:
    picture = pictures(1)[0].astype(np.int16)
    hidden = np.zeros(picture.shape, bool)
    hidden[:8] = True
    padded = np.where(hidden, -2000, picture)
    plain = look(Image(np.where(hidden, picture[~hidden].min(), picture)))
    assert np.allclose(look(Image(padded, padding=hidden)).thumbnail, plain.thumbnail, atol=2e-3)
    black = look(Image(picture.max() - picture, inverted=True))
    assert np.allclose(black.thumbnail, look(Image(picture)).thumbnail, atol=2e-3)


def test_shapes_are_part_of_identity() -> None:
    x = np.arange(12, dtype=np.uint8)
    assert look(Image(x.reshape(3, 4))).digest != look(Image(x.reshape(4, 3))).digest
    colour = np.stack([np.arange(30).reshape(5, 6)] * 3, axis=-1).astype(np.uint8)
    assert look(Image(colour, rgb=True)).thumbnail.shape == (64, 64)
    assert look(Image(np.zeros((7, 5, 6)))).thumbnail.shape == (64, 64)
    assert look(Image(np.zeros((7, 5, 6, 3)), Geometry(affine=np.eye(4)))).thumbnail.shape == (20, 20, 20)


def test_near_copies_across_parts_warn_and_contradictions_are_told() -> None:
    images: list[Pixels] = [*pictures(60)]
    images[40] = window(60, 180)(images[3])
    images[41] = flip(1)(images[4])
    images[10] = stored("JPEG", quality=70)(images[11])
    labels = [0, 1] * 30
    labels[3], labels[40], labels[4], labels[41], labels[10], labels[11] = 0, 1, 1, 1, 0, 0
    cohort = cohort_of(images, labels, halves(60))
    found = audit(cohort, Split.from_column(cohort), progress=False)
    assert counts(found) == {"near_copy_across_parts": 2, "contradictory_near_copies": 2, "near_copy": 1}
    assert [f.severity for f in found.findings] == ["warning", "warning", "note"]
    found.raise_for_errors()


def test_contradictory_copies_and_duplicates_within_a_part() -> None:
    images: list[Pixels] = [*pictures(20)]
    images[5] = images[4]
    images[7] = images[6]
    labels = [0, 1] * 10
    labels[7] = labels[6]
    found = audit(cohort_of(images, labels), progress=False)
    assert counts(found) == {"contradictory_copies": 2, "duplicate": 2}
    with pytest.raises(CohortError, match=r"accept: \[contradictory_copies\]"):
        found.raise_for_errors()
    assert audit(cohort_of(images, labels), accept=["contradictory_copies"], progress=False).errors == ()


def test_patients_and_studies_across_parts() -> None:
    images = [*pictures(12)]
    cohort = cohort_of(
        images,
        patients=["P01", *(f"q{i}" for i in range(10)), "p01 "],
        study=["s", *(f"t{i}" for i in range(10)), "s"],
        site=["A"] * 11 + ["B"],
    )
    honest = cohort_of(images, parts=halves(12))
    split = Split.from_column(honest)
    leaky = Split(split.folds, "given", 0, cohort.fingerprint, cohort.aliases)
    found = audit(cohort, leaky, progress=False)
    assert counts(found) == {
        "patient_across_parts": 1, "study_across_parts": 1, "contradictory_patient": 1, "patient_at_several_sites": 1,
    }  # fmt: skip
    assert "1 patient stands in two parts (1 in train and test)" in found.findings[0].message
    with pytest.raises(LeakageError):
        found.raise_for_errors()
    text = str(found) + found._repr_html_() + str(found.to_record()) + repr(found)
    assert "P01" not in text
    assert "p01" not in text


def test_clean_folds_and_a_copy_between_folds() -> None:
    images: list[Pixels] = [*pictures(40)]
    cohort = cohort_of(images)
    assert audit(cohort, split_by_patient(cohort, folds=4), progress=False).findings == ()
    split = split_by_patient(cohort, folds=4)
    a, b = split.folds[0].test[0], split.folds[2].test[0]
    images[b] = images[a]
    cohort = cohort_of(images, labels=[0, 1] * 20)
    found = audit(cohort, Split(split.folds, "", 0, cohort.fingerprint, cohort.aliases), progress=False)
    assert counts(found)["duplicate_across_parts"] == 1
    assert "1 in fold 1 and fold 3" in found.findings[0].message


def test_unreadable_images_are_counted_without_stopping() -> None:
    def read(case: Case) -> Image:
        if case.case_id in ("c3", "c4"):
            raise ReadError("truncated", where="Doe.dcm")
        return case.read()

    found = audit(cohort_of([*pictures(10)]), read=read, progress=False)
    assert counts(found) == {"unreadable": 2}
    assert "2 truncated" in found.findings[0].message
    with pytest.raises(CohortError) as caught:
        found.raise_for_errors()
    assert "Doe" not in str(caught.value)


def test_accept_and_record() -> None:
    cohort = cohort_of([*pictures(4)])
    with pytest.raises(ConfigError, match="did you mean 'duplicate_across_parts'"):
        audit(cohort, accept=["duplicates_across_part"])
    found = audit(cohort, accept=["duplicate"], progress=False)
    assert found.to_record() == {"findings": [], "accepted": ["duplicate"]}
    assert str(found) == "nothing found"


def medmnist(name: str) -> Path:
    path = DATA / "medmnist" / name
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/medmnist/{name}")
    return path


def test_real_copies_in_chest_radiographs() -> None:
    """Counts as its SOURCE.txt has them: 8 validation images are train images, none of the test set is."""
    cohort = Cohort.from_medmnist(medmnist("pneumoniamnist_rebuilt.npz"))
    found = audit(cohort, split_by_patient(cohort, official=True), progress=False)
    messages = {f.name: f.message for f in found.findings}
    assert counts(found)["duplicate_across_parts"] == 8
    assert "(8 in train and val)" in messages["duplicate_across_parts"]
    assert "18 in train" in messages["duplicate"]
    near = {c for f in found.findings if f.name.startswith("near_copy") for c in f.cases}
    assert len(near) <= 0.01 * len(cohort)


@pytest.mark.slow
def test_planted_near_copies_of_real_ct() -> None:
    """200 near copies of real slices: at least 95 % found, at most 1 % of the others flagged."""
    folder = DATA / "siim_ct_contrast_dicom"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/siim_ct_contrast_dicom")
    real = Cohort.from_dicom(
        folder / "dicom_dir.tar.gz", labels=folder / "manifest.csv", on="file", label="label_contrast", progress=False
    )
    arrays = [case.read().array.astype(np.float32) for case in real]
    first = {look(Image(a)).digest: i for i, a in reversed(list(enumerate(arrays)))}
    originals = [arrays[i] for i in sorted(first.values())]
    changes = [
        window(-160, 240), window(-1350, 150), window(-450, 1050), flip(1), flip(0), resized(256, 256),
        after(window(-160, 240), stored("JPEG2000", quality_mode="rates", quality_layers=[20])),
        after(window(-1350, 150), stored("JPEG", quality=50)), after(resized(200, 200), window(-160, 240), flip(1)),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(originals) * len(changes), 200, replace=False)
    source = [int(d) // len(changes) for d in drawn]
    planted = [changes[int(d) % len(changes)](originals[s]) for d, s in zip(drawn, source, strict=True)]
    looks = [look(Image(np.ascontiguousarray(x))) for x in [*originals, *planted]]
    pairs = {(i, j) for i, j, _ in near_pairs(np.stack([seen.thumbnail for seen in looks]))}
    owner = [*range(len(originals)), *source]
    found = {j for i, j in pairs if j >= len(originals) and i < len(originals) and owner[i] == owner[j]}
    wrong = {k for i, j in pairs if owner[i] != owner[j] for k in (i, j)}
    print(f"found {len(found)} of 200, wrongly paired {len(wrong)} of {len(looks)}")
    assert len(found) >= 190
    assert len(wrong) <= 0.01 * len(looks)
