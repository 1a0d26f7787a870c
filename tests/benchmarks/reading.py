"""Reading against its peers, alternating in one run: ``python tests/benchmarks/reading.py [rounds]``.

Times are the least of the rounds, ratios are ours over theirs. Peers that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from figures import figure
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medtransfer.io import read
from medtransfer.io.scan import scan

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
MR = SHARED / "data" / "hippocampus" / "dicom_test"


def make_ct(folder: Path, slices: int) -> Path:
    """An uncompressed CT of 512 x 512 with the header of a usual scanner."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    body = np.hypot(*np.mgrid[-256:256, -256:256] / np.array([150, 200])[:, None, None]) < 1
    for k in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID, ds.PatientName = study, series, "1", "A^B"
        ds.Modality, ds.Manufacturer, ds.StudyDate, ds.SeriesDescription = "CT", "X", "20200101", "lung"
        ds.ImageType, ds.KVP, ds.SliceThickness, ds.InstanceNumber = ["ORIGINAL", "PRIMARY"], 120, 1.25, k + 1
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-200, -200, -100 + 1.25 * k], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.Rows, ds.Columns, ds.SamplesPerPixel = [0.78, 0.78], 512, 512, 1
        ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = "MONOCHROME2", 16, 16, 15
        ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope = 1, -24, 1
        ds.PixelData = np.where(body, 40 + rng.normal(0, 12, (512, 512)), -1000).astype(np.int16).tobytes()
        ds.save_as(folder / f"{(k * 7919) % slices:04d}.dcm", enforce_file_format=True)
    return folder


def real_header(work: Path) -> Path | None:
    """A real CT file, where the shared data are at hand."""
    packed = SHARED / "data" / "siim_ct_contrast_dicom" / "dicom_dir.tar.gz"
    if not packed.is_file():
        return None
    with tarfile.open(packed) as archive:
        member = next(m for m in archive if m.name.endswith(".dcm"))
        archive.extract(member, work, filter="data")
    return work / member.name


def compare(title: str, ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least time of each way over alternating rounds, printed as ratios."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in list(ways.items()):
            began = time.perf_counter()
            try:
                way()
            except Exception as error:  # a peer that fails is left out, with its reason
                print(f"  {name} failed: {type(error).__name__}: {str(error)[:80]}")
                del ways[name], best[name]
                continue
            best[name] = min(best[name], time.perf_counter() - began)
    ours = best["medtransfer"]
    print(f"\n{title}")
    for name, seconds in best.items():
        print(f"  {name:44s} {seconds:8.3f} s   medtransfer takes {ours / seconds:6.3f} of it")
        if name != "medtransfer":
            figure(f"{title}: {name} over medtransfer", seconds / ours, note=f"least of {rounds}")
    return best


def simpleitk(folder: Path) -> object:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayFromImage(reader.Execute())


def monai(folder: Path) -> object:
    from monai.transforms import LoadImage

    return LoadImage(reader="PydicomReader", image_only=True)(str(folder))


def dcm2niix(folder: Path) -> object:
    import nibabel

    with tempfile.TemporaryDirectory() as out:
        program = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}:{sys.exec_prefix}/bin") or "dcm2niix"
        command = [program, "-z", "n", "-b", "n", "-o", out, "-f", "x", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [nibabel.load(f).get_fdata(dtype=np.float32) for f in Path(out).glob("*.nii")]


def series(title: str, folder: Path, rounds: int) -> None:
    """One series, found and read."""
    ways: dict[str, Callable[[], object]] = {"medtransfer": lambda: [s.read() for s in scan(folder, progress=False)]}
    for name, package, way in (
        ("SimpleITK", "SimpleITK", simpleitk),
        ("MONAI PydicomReader", "monai", monai),
        ("dcm2niix and loading its output", "dcm2niix", dcm2niix),
    ):
        if importlib.util.find_spec(package) or shutil.which(package):
            ways[name] = lambda way=way: way(folder)  # type: ignore[misc]
    compare(title, ways, rounds)


def index(files: list[Path], rounds: int) -> None:
    """Headers of 2,000 files."""
    folder = files[0].parent

    def loop() -> list[object]:
        return [pydicom.dcmread(f, stop_before_pixels=True).SeriesInstanceUID for f in files]

    compare(
        f"indexing {len(files)} files",
        {"medtransfer": lambda: scan(folder, progress=False), "pydicom stop_before_pixels in a loop": loop},
        rounds,
    )


def nifti(folder: Path, rounds: int) -> None:
    """Load and reorient small volumes."""
    import nibabel
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

    files = sorted(folder.glob("*.nii.gz"))[:20]
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    pipe = Compose([LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=labels)])
    compare(
        f"{len(files)} NIfTI files, loaded and reoriented",
        {
            "medtransfer": lambda: [read(f) for f in files],
            "MONAI LoadImage and Orientation": lambda: [pipe(f) for f in files],
            "nibabel as_closest_canonical": lambda: [
                np.asarray(nibabel.as_closest_canonical(nibabel.load(f)).dataobj) for f in files
            ],
        },
        rounds,
    )
    from monai.transforms import ResizeWithPadOrCrop, ScaleIntensityRange, Spacing

    from medtransfer.prepare import Prepare

    for title, grid in (("with resampling to 0.8 mm", (0.8, 0.8, 0.8)), ("at their own 1 mm", (1.0, 1.0, 1.0))):
        prepare = Prepare(size=(40, 48, 40), spacing_mm=grid, scale=(0, 500))
        steps = [Spacing(grid, mode="bilinear"), ScaleIntensityRange(0, 500, 0, 1, clip=True)]
        whole = Compose([*pipe.transforms, *steps, ResizeWithPadOrCrop((40, 48, 40))])
        compare(
            f"{len(files)} NIfTI files, loaded, reoriented, resampled, windowed and cropped, {title}",
            {
                "medtransfer": lambda prepare=prepare: [prepare(read(f)) for f in files],
                "MONAI": lambda whole=whole: [whole(f) for f in files],
            },
            rounds,
        )


def dump(root: Path, source: Path, count: int) -> None:
    """Time and memory of scanning a large dump."""
    template = pydicom.dcmread(source)
    template.PixelData = template.PixelData[: template.Rows * template.Columns * 2]
    root.mkdir()
    for number in range(count):
        if number % 100 == 0:
            template.SeriesInstanceUID, template.StudyInstanceUID = generate_uid(), generate_uid()
            (folder := root / f"{number // 100:05d}").mkdir()
        template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        template.ImagePositionPatient[2], template.InstanceNumber = number % 100, number % 100
        template.save_as(folder / f"{number % 100:03d}.dcm")


def main(rounds: int) -> None:
    """Everything, printed."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        ct = make_ct(work / "ct", 300)
        series("300 CT slices of 512 x 512, uncompressed", ct, rounds)
        if MR.is_dir():
            real = max((f.parent for f in MR.rglob("*.dcm")), key=lambda d: len(list(d.iterdir())))
            series(f"a real MR series of {len(list(real.iterdir()))} slices", real, rounds)
        small = pydicom.dcmread(real_header(work) or next(ct.iterdir()))
        small.Rows = small.Columns = 32
        small.PixelData = small.PixelData[: 32 * 32 * 2]
        small.save_as(work / "small.dcm")
        print(f"\nheaders of {len(list(small.iterall()))} elements")
        dump(work / "index", work / "small.dcm", 2000)
        files = sorted((work / "index").rglob("*.dcm"))
        flat = work / "flat"
        flat.mkdir()
        index([Path(shutil.copy(f, flat / f"{i}.dcm")) for i, f in enumerate(files)], rounds)
        if (SHARED / "data" / "hippocampus" / "images").is_dir():
            nifti(SHARED / "data" / "hippocampus" / "images", rounds)
        print("\nscanning dumps")
        for count in (2500, 5000, 10_000):
            dump(work / f"dump{count}", work / "small.dcm", count)
            code = (
                "import time; from medtransfer.io.scan import scan; b = time.perf_counter();"
                f"n = len(scan({str(work / f'dump{count}')!r}, progress=False)); t = time.perf_counter() - b;"
                "peak = next(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM'));"
                "print(n, 'series', round(t, 2), 's', int(peak) // 1024, 'MB')"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            print(f"  {count} files: {done.stdout.strip()}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
