"""Cohorts from tables, dumps and MedMNIST files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medtransfer.cohort import Case, Cohort
from medtransfer.errors import CohortError, ConfigError, MedTransferError
from medtransfer.pseudonym import pseudonym

SECRET = "Doe^Jane"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    from PIL import Image

    (tmp_path / "img").mkdir()
    for i in range(6):
        Image.fromarray(np.full((4, 5), i, np.uint8)).save(tmp_path / "img" / f"{i}.png")
    return tmp_path


def table(root: Path, text: str, name: str = "cohort.csv", encoding: str = "utf-8") -> Path:
    path = root / name
    path.write_bytes(text.encode(encoding))
    return path


GOOD = "case_id,patient_id,image,label\na,0012,img/0.png,no\nb,0013,img/1.png,yes\nc,0012,img/2.png,no\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GOOD, "utf-8"),
        (GOOD, "utf-8-sig"),
        (GOOD, "utf-16"),
        (GOOD.replace(",", ";"), "utf-8"),
        (GOOD.replace(",", "\t"), "utf-8"),
        (GOOD.replace("\n", "\r\n"), "utf-8"),
        (GOOD.replace("img/", "img\\"), "utf-8"),
        (GOOD.replace("label\n", "label,,\n").replace("no\n", "no,,\n").replace("yes\n", "yes,,\n"), "utf-8"),
        ("\n" + GOOD.replace("\nb", "\n\nb"), "utf-8"),
    ],
)
def test_one_table_in_many_writings(root: Path, text: str, encoding: str) -> None:
    cohort = Cohort.from_csv(table(root, text, encoding=encoding), root=root)
    assert [c.case_id for c in cohort] == ["a", "b", "c"]
    assert [c.patient_id for c in cohort] == ["0012", "0013", "0012"]
    assert cohort.labels.tolist() == [0, 1, 0]
    assert cohort.classes == ("no", "yes")
    assert cohort[1].read().array.tolist() == np.ones((4, 5)).tolist()


def test_excel_keeps_ids_as_text(root: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["patient_id", "image", "label"], ["0012", "img/0.png", 0], [13, "img/1.png", 1], [None, None, None]):
        book.active.append(row)
    book.save(root / "cohort.xlsx")
    cohort = Cohort.from_csv(root / "cohort.xlsx", root=root)
    assert [c.patient_id for c in cohort] == ["0012", "13"]
    assert [c.case_id for c in cohort] == ["row 2", "row 3"]
    with pytest.raises(CohortError, match="no sheet number 3"):
        Cohort.from_csv(root / "cohort.xlsx", root=root, sheet=3)


BAD = {
    "empty": ("", "empty"),
    "header only": ("patient_id,image,label\n", "no rows"),
    "column twice": ("patient_id,image,image,label\n1,a,b,0\n", "line 1"),
    "cells too many": ("patient_id,image,label\n1,img/0.png,0\n2,img/1.png,1,2\n", "line 3"),
    "no image column": ("patient_id,imgae,label\n1,img/0.png,0\n", "did you mean 'imgae'"),
    "no label column": ("patient_id,image,labels\n1,img/0.png,0\n", "did you mean 'labels'"),
    "no patient column": ("image,label\nimg/0.png,0\n", "one patient could be trained on and tested on"),
    "patient missing": ("patient_id,image,label\n1,img/0.png,0\n,img/1.png,1\nNA,img/2.png,1\n", "lines 3, 4"),
    "case twice": (GOOD + "a,9,img/3.png,no\n", "lines 2, 5"),
    "two labels": (GOOD + "d,9,img/0.png,yes\n", "lines 2, 5"),
    "files missing": (GOOD + "d,9,img/8.png,yes\ne,9,img/9.png,yes\n", "lines 5, 6.*2 of 5 files"),
    "leaves root": (GOOD + "d,9,../x.png,yes\n", "line 5.*leaves the root"),
    "windows drive": (GOOD + "d,9,D:\\x.png,yes\n", "line 5.*Windows drive"),
    "all labels missing": ("patient_id,image,label\n1,img/0.png,\n2,img/1.png,nan\n", "is complete.*2 without label"),
    "one class": ("patient_id,image,label\n1,img/0.png,1\n2,img/1.png,1\n", "only one class"),
    "which is positive": ("patient_id,image,label\n1,img/0.png,cat\n2,img/1.png,dog\n", r"classes=\['cat', 'dog'\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_table_is_named_with_its_lines(root: Path, name: str) -> None:
    text, wanted = BAD[name]
    with pytest.raises(CohortError) as caught:
        Cohort.from_csv(table(root, text), root=root)
    import re

    message = str(caught.value)
    assert all(re.search(piece, message) for piece in wanted.split(".*")), message
    assert "cohort.csv" in message or "classes" in message
    assert str(root) not in message


def test_unseen_class_names_line_and_nearest(root: Path) -> None:
    text = GOOD.replace("yes", "malignent").replace("no", "benign")
    with pytest.raises(CohortError, match=r"cohort.csv line 3: .*'malignent'.*did you mean 'malignant'"):
        Cohort.from_csv(table(root, text), root=root, classes=["benign", "malignant"])


def test_a_wrong_label_column_shows_no_ids(root: Path) -> None:
    text = "patient_id,image,label\n" + "".join(f"{SECRET}{i},img/{i % 6}.png,{SECRET}{i}\n" for i in range(12))
    for classes in (None, ["no", "yes"]):
        with pytest.raises(CohortError) as caught:
            Cohort.from_csv(table(root, text), root=root, classes=classes)
        assert "12" in str(caught.value)
        assert "Doe" not in str(caught.value)


def test_missing_labels_are_counted_not_guessed(root: Path) -> None:
    cohort = Cohort.from_csv(table(root, GOOD + "d,14,img/3.png,NaN\ne,15,img/4.png,\n"), root=root)
    assert cohort.flow_record() == [
        ["rows of the table", 5, []],
        ["cases", 3, [["without label", 2]]],
        ["patients", 2, []],
    ]
    assert cohort.notes == ("rows without label were left out: lines 5, 6",)


def test_no_table_no_root(root: Path) -> None:
    with pytest.raises(CohortError, match=r"absent\.csv: there is no such table"):
        Cohort.from_csv(root / "absent.csv")
    with pytest.raises(CohortError, match="root folder"):
        Cohort.from_csv(table(root, GOOD), root=root / "absent")


@pytest.mark.parametrize(
    ("found", "ordered"),
    [
        ({"1", "0"}, ("0", "1")),
        ({"yes", "no"}, ("no", "yes")),
        ({"True", "False"}, ("False", "True")),
        ({"malignant", "benign"}, ("benign", "malignant")),
        ({"Negative", "Positive"}, ("Negative", "Positive")),
        ({"Pneumonia", "Normal"}, ("Normal", "Pneumonia")),
        ({"healthy", "disease"}, ("healthy", "disease")),
        ({"present", "absent"}, ("absent", "present")),
        ({"case", "control"}, ("control", "case")),
        ({"with contrast", "without contrast"}, ("without contrast", "with contrast")),
        ({"COVID", "non-COVID"}, ("non-COVID", "COVID")),
        ({"finding", "no finding"}, ("no finding", "finding")),
        ({"mild", "none"}, ("none", "mild")),
    ],
)
def test_positive_class_is_last(root: Path, found: set[str], ordered: tuple[str, str]) -> None:
    for first, second in (sorted(found), sorted(found, reverse=True)):
        text = f"patient_id,image,label\n1,img/0.png,{first}\n2,img/1.png,{second}\n"
        assert Cohort.from_csv(table(root, text), root=root).classes == ordered


def test_classes_numeric_forms_and_upper_case(root: Path) -> None:
    rows = ["1.0", "0.0", "2", "10.0"]
    text = "patient_id,image,label\n" + "".join(f"{i},img/{i}.png,{r}\n" for i, r in enumerate(rows))
    cohort = Cohort.from_csv(table(root, text), root=root)
    assert cohort.classes == ("0", "1", "2", "10")
    assert cohort.labels.tolist() == [1, 0, 2, 3]
    text = "patient_id,image,label\n1,img/0.png,Yes\n2,img/1.png,yes\n3,img/2.png,no\n"
    cohort = Cohort.from_csv(table(root, text), root=root)
    assert cohort.labels.tolist() == [1, 1, 0]
    assert "upper and lower case" in cohort.notes[0]
    with pytest.raises(CohortError, match="at least two different names"):
        Cohort.from_csv(table(root, text), root=root, classes=["yes", "Yes"])


def test_masks_targets_parts_and_covariates(root: Path) -> None:
    text = (
        "patient_id,image,seg,volume,fold,Age,Gender,scanner\n"
        "1,img/0.png,img/1.png,3.5,train,061Y,female,A\n"
        "2,img/2.png,img/3.png,4,test,x,M,\n"
        "3,img/2.png,,4,test,x,M,\n"
    )
    path = table(root, text)
    cohort = Cohort.from_csv(path, root=root, mask="seg", target="volume", part="fold", covariates=["scanner"])
    assert (cohort.task, cohort.classes) == ("regression", ("volume",))
    assert len(cohort) == 2
    assert [c.target for c in cohort] == [3.5, 4.0]
    assert [c.part for c in cohort] == ["train", "test"]
    assert [c.mask for c in cohort] == [root / "img/1.png", root / "img/3.png"]
    assert [dict(c.covariates) for c in cohort] == [{"age": "61", "sex": "F", "scanner": "A"}, {"sex": "M"}]
    with pytest.raises(CohortError, match="must hold numbers"):
        Cohort.from_csv(path, root=root, label=None, target="scanner")


def test_nothing_shown_holds_an_original_id(root: Path) -> None:
    text = f"case_id,patient_id,image,label\n{SECRET} 1,{SECRET},img/0.png,no\n{SECRET} 2,{SECRET},img/1.png,yes\n"
    cohort = Cohort.from_csv(table(root, text), root=root)
    shown = [repr(cohort), str(cohort), cohort.summary(), cohort._repr_html_(), repr(cohort.cases), cohort.fingerprint]
    shown += [repr(cohort[0].alias), repr(cohort[0].patient_alias), str(cohort.table1()), str(cohort.flow_record())]
    assert not any("Doe" in text for text in shown)
    bad = text.replace("img/1.png", "img/7.png") + f"{SECRET} 1,{SECRET},img/2.png,no\n"
    with pytest.raises(CohortError) as caught:
        Cohort.from_csv(table(root, bad), root=root)
    assert "Doe" not in str(caught.value)


def test_spellings_of_one_patient(root: Path) -> None:
    text = "patient_id,image,label\n P01 ,img/0.png,no\np01,img/1.png,yes\n7,img/2.png,no\n007,img/3.png,no\n"
    cohort = Cohort.from_csv(table(root, text), root=root)
    assert len(set(cohort.patients)) == 2
    assert cohort[0].patient_alias == cohort[1].patient_alias != cohort[2].patient_alias
    assert "4 spellings of patient ids name 2 patients" in cohort.notes[0]


def test_table1_by_hand() -> None:
    people = [("60", "F"), ("70", "F"), ("80", "M"), ("", "M")]
    cases = tuple(
        Case(f"c{i}", f"p{i // 2}", np.zeros((2, 2)), label=i % 2, covariates={"sex": s} | ({"age": a} if a else {}))
        for i, (a, s) in enumerate(people)
    )
    found = Cohort(cases, ("no", "yes")).table1()
    assert found["columns"] == ["all"]
    assert found["rows"] == [
        ["cases", "4"], ["patients", "2"], ["no", "2 (50 %)"], ["yes", "2 (50 %)"],
        ["age in years, median [IQR]", "70 [65-75]"], ["sex F", "2 (50 %)"], ["sex M", "2 (50 %)"],
    ]  # fmt: skip


# MedMNIST ------------------------------------------------------------------------------------------


def medmnist(path: Path, shape: tuple[int, ...], labels: int = 1, **extra: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.tile(np.arange(n)[:, None] % 2, (1, labels)).astype(np.uint8)
    np.savez(path, **(arrays | extra))
    return path


@pytest.mark.parametrize(
    ("shape", "kind", "rgb"), [((8, 8), "image", False), ((8, 8, 3), "image", True), ((8, 8, 8), "volume", False)]
)
def test_medmnist(tmp_path: Path, shape: tuple[int, ...], kind: str, rgb: bool) -> None:
    cohort = Cohort.from_medmnist(medmnist(tmp_path / "m.npz", shape), classes=["no", "yes"])
    assert [sum(c.part == p for c in cohort) for p in ("train", "val", "test")] == [6, 3, 4]
    image = cohort[0].read()
    assert (image.kind, image.rgb, image.array.shape) == (kind, rgb, shape)
    assert image.value_range == (0.0, 255.0)
    assert cohort.labels.tolist() == [0, 1] * 3 + [0, 1, 0] + [0, 1] * 2
    assert len(set(cohort.patients)) == 13
    assert "patients are not recorded" in cohort.notes[0]


def test_medmnist_refusals(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="not those of classification"):
        Cohort.from_medmnist(medmnist(tmp_path / "a.npz", (8, 8), labels=3), task="classification")
    pickled = np.array([{"a": 1}] * 6, dtype=object)
    with pytest.raises(CohortError, match="plain arrays"):
        Cohort.from_medmnist(medmnist(tmp_path / "b.npz", (8, 8), train_images=pickled))
    with pytest.raises(CohortError, match="do not fit"):
        Cohort.from_medmnist(medmnist(tmp_path / "c.npz", (8, 8), val_labels=np.zeros((9, 1), np.uint8)))
    with pytest.raises(CohortError, match="run from 0 to 1"):
        Cohort.from_medmnist(medmnist(tmp_path / "d.npz", (8, 8)), classes=["only"])
    (tmp_path / "e.npz").write_bytes(b"PK\x03\x04 damaged")
    for name in ("e.npz", "absent.npz"):
        with pytest.raises(CohortError, match=name):
            Cohort.from_medmnist(tmp_path / name)


# DICOM ---------------------------------------------------------------------------------------------


def dicom(
    path: Path, *, patient: str | None, study: str, series: str, z: int = 0, thick: float = 2.0, modality: str = "CT",
    description: str = "",
) -> None:  # fmt: skip
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    if patient is not None:
        ds.PatientID = patient
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality, ds.InstanceNumber = study, series, modality, z + 1
    ds.PatientAge, ds.PatientSex, ds.Manufacturer, ds.SeriesDescription = "061Y", "F", "Maker", description
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 5, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1000
    ds.PixelSpacing, ds.SliceThickness = [1, 1], thick
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, z * thick]
    ds.PixelData = np.full((4, 5), 10 * z, np.int16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Four patients with one study each; patient 003 has a second, thinner series and 004 a localiser."""
    folder = tmp_path / "dump"
    for p in range(1, 5):
        for z in range(4):
            dicom(folder / f"p{p}" / f"{z}.dcm", patient=f"00{p}", study=f"1.2.{p}", series=f"1.2.{p}.1", z=z)
    for z in range(6):
        dicom(folder / "thin" / f"t{z}.dcm", patient="003", study="1.2.3", series="1.2.3.2", z=z, thick=1.0,
              description="LUNG sharp")  # fmt: skip
    dicom(folder / "loc.dcm", patient="004", study="1.2.4", series="1.2.4.9", modality="MR")
    (folder / "notes.txt").write_text("not an image")
    return folder


def join(dump: Path, text: str, **options: object) -> Cohort:
    return Cohort.from_dicom(dump, labels=table(dump.parent, text, "labels.csv"), progress=False, **options)  # type: ignore[arg-type]


LABELS = "patient_id,label\n001,0\n002,1\n003,1\n004,0\n009,1\n"


def test_join_on_patient_is_ambiguous_then_chosen_by_rule(dump: Path) -> None:
    with pytest.raises(CohortError) as caught:
        join(dump, LABELS)
    message = str(caught.value)
    assert "labels.csv lines 4, 5" in message
    assert "6 slices every 1 mm" in message
    assert "4 slices every 2 mm" in message
    assert "003" not in message
    assert pseudonym("series", "1.2.3.2") in message
    for rule in ("most_slices", "thinnest"):
        cohort = join(dump, LABELS, modality="CT", choose=rule)
        assert [c.read().array.shape for c in cohort] == [(5, 4, 4), (5, 4, 4), (5, 4, 6), (5, 4, 4)]
        assert cohort.labels.tolist() == [0, 1, 1, 0]
        assert [c.patient_id for c in cohort] == [pseudonym("patient", f"00{p}") for p in range(1, 5)]
        assert dict(cohort[0].covariates) == {"age": "61", "sex": "F", "manufacturer": "Maker"}
    assert cohort.flow_record() == [
        ["files", 24, []],
        ["series", 6, [["files: not DICOM", 1]]],
        ["readable series", 5, [["modality MR", 1]]],
        ["cases", 4, [["not chosen", 1], ["rows of the table without an image", 1]]],
        ["patients", 4, []],
    ]


def test_join_all_description_and_case_ids(dump: Path) -> None:
    cohort = join(dump, LABELS, modality="CT", choose="all")
    assert len(cohort) == 5
    assert len(set(cohort.aliases)) == 5
    assert cohort.labels.tolist() == [0, 1, 1, 1, 0]
    only = join(dump, "patient_id,label\n003,1\n001,0\n", description="lung", classes=[0, 1])
    assert len(only) == 1
    assert only.labels.tolist() == [1]
    with pytest.raises(ConfigError, match="regular expression"):
        join(dump, LABELS, description="(")


def test_join_on_uids_and_files(dump: Path) -> None:
    cohort = join(dump, "StudyInstanceUID,label,who\n1.2.1,no,x\n1.2.2,yes,y\n", on="StudyInstanceUID", patient="who")
    assert [c.patient_id for c in cohort] == ["x", "y"]
    assert cohort.classes == ("no", "yes")
    cohort = join(dump, "uid,label\n1.2.3.2,0\n1.2.3.1,1\n", on="SeriesInstanceUID", column="uid")
    assert [len(c.read().array[0, 0]) for c in cohort] == [6, 4]
    cohort = join(dump, "file,label\nP2/3.DCM,0\nt5,1\nthin\\t0.dcm,1\n", on="file")
    assert [float(c.read().array[0, 0]) for c in cohort] == [-970.0, -950.0, -1000.0]
    assert [c.patient_id for c in cohort] == [pseudonym("patient", p) for p in ("002", "003", "003")]
    assert len(set(cohort.aliases)) == 3
    with pytest.raises(CohortError, match=r"labels.csv line 2: a file name fits several files"):
        join(dump, "file,label\n0.dcm,0\nt5,1\n", on="file")
    with pytest.raises(CohortError, match="lines 2, 3: two rows name the same file"):
        join(dump, "file,label\nt5,1\nt5.dcm,1\nt4,0\n", on="file")


def test_nothing_joins_says_what_would(dump: Path) -> None:
    with pytest.raises(CohortError) as caught:
        join(dump, "patient_id,label\n1.2.1,0\n1.2.2,1\n")
    message = str(caught.value)
    assert "on='StudyInstanceUID', column='patient_id' fits 2 of 2" in message
    assert "'9.9.9'" in message
    assert "1.2.1" not in message
    spreadsheet = join(dump, "patient_id,label\n1,0\n2,1\n")  # it has eaten the zeros of 001 and 002
    assert len(spreadsheet) == len(join(dump, "patient_id,label\n001,0\n002,1\n"))
    with pytest.raises(CohortError, match="check that the table belongs"):
        join(dump, "patient_id,label\nX1,0\nX2,1\n")


def test_join_refusals(dump: Path) -> None:
    with pytest.raises(CohortError, match=r"lines 2, 4"):
        join(dump, "patient_id,label\n001,0\n002,1\n001,1\n")
    with pytest.raises(ConfigError, match="one of PatientID"):
        join(dump, LABELS, on="PatientName")
    with pytest.raises(ConfigError, match="one of only"):
        join(dump, LABELS, choose="first")
    with pytest.raises(CohortError, match="no column 'PatientID'"):
        join(dump, "person,label\n001,0\n")
    nobody = dump.parent / "nobody"
    for i in range(2):
        dicom(nobody / f"{i}.dcm", patient=["", None][i], study=f"1.{i}", series=f"1.{i}.1")
    with pytest.raises(CohortError, match=r"patient of 2 of 2 cases is unknown.*patient='\.\.\.'"):
        join(nobody, "file,label\n0.dcm,0\n1.dcm,1\n", on="file")


def test_archive_equals_folder(dump: Path) -> None:
    import shutil

    packed = shutil.make_archive(str(dump.parent / "packed"), "gztar", dump)
    options = {"modality": "CT", "choose": "thinnest"}
    here, there = join(dump, LABELS, **options), join(Path(packed), LABELS, **options)
    assert here.fingerprint == there.fingerprint


def test_rows_without_a_label_and_no_usable_series(dump: Path) -> None:
    cohort = join(dump, LABELS.replace("001,0", "001,").replace("009", "003"), modality="CT", choose="thinnest")
    assert cohort.labels.tolist() == [1, 1, 0]
    assert cohort.flow_record()[3] == ["cases", 3, [["without a label", 1], ["not chosen", 1]]]
    assert cohort.notes[:2] == (
        "rows without a label were left out: line 2", "1 rows of the table repeat an earlier one and were not used",
    )  # fmt: skip
    with pytest.raises(CohortError, match="no series can be used; found 5 modality CT, 1 modality MR"):
        join(dump, LABELS, modality="US")


def test_dump_errors_are_of_the_family(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedTransferError):
        join(tmp_path / "empty", LABELS)


SIIM = Path(__file__).resolve().parents[2] / "shared" / "data" / "siim_ct_contrast_dicom"


@pytest.mark.skipif(not SIIM.is_dir(), reason="needs ../shared/data/siim_ct_contrast_dicom")
def test_real_ct_slices() -> None:
    cohort = Cohort.from_dicom(
        SIIM / "dicom_dir.tar.gz", labels=SIIM / "manifest.csv", on="file", label="label_contrast", progress=False
    )
    assert len(cohort) == 100
    assert len(set(cohort.patients)) == 54
    assert [int((cohort.labels == k).sum()) for k in (0, 1)] == [50, 50]
    several = [p for p in set(cohort.patients.tolist()) if (cohort.patients == p).sum() > 1]
    both = [p for p in several if len(set(cohort.labels[cohort.patients == p])) == 2]
    assert (len(several), len(both)) == (28, 9)
    assert cohort[0].covariates["age"] == "60"
    assert cohort[0].covariates["sex"] == "M"


def test_a_plane_is_chosen_by_how_slices_were_acquired(tmp_path: Path) -> None:
    import pydicom

    axial, coronal = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, 0, -1]
    for name, direction, step, count in (("a", axial, (0, 0, 4), 5), ("c", coronal, (0, 3, 0), 4)):
        for k in range(count):
            path = tmp_path / f"{name}{k}.dcm"
            dicom(path, patient="P1", study="1.2.3", series=f"1.2.3.{ord(name)}", z=k)
            ds = pydicom.dcmread(path)
            ds.ImageOrientationPatient, ds.ImagePositionPatient = direction, [float(k * s) for s in step]
            ds.save_as(path)
    (tmp_path / "l.csv").write_text("PatientID,label\nP1,0\n")
    options = {"labels": tmp_path / "l.csv", "classes": ["0", "1"], "progress": False}
    for plane, slices, axis in (("axial", 5, 2), ("coronal", 4, 1)):
        chosen = Cohort.from_dicom(tmp_path, plane=plane, **options)
        assert chosen[0].image.plane == plane
        assert chosen[0].read().array.shape[axis] == slices
    with pytest.raises(CohortError, match="plane='axial'"):
        Cohort.from_dicom(tmp_path, **options)
    most = Cohort.from_dicom(tmp_path, choose="most_slices", **options)
    assert most[0].image.plane == "axial"
