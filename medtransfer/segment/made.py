"""Masks that a run has written already, used again where nothing that they are made from has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import medtransfer
from medtransfer.cache import file_digest, fingerprint, write_atomically
from medtransfer.cohort import Case
from medtransfer.errors import ReadError
from medtransfer.image import Image
from medtransfer.io import read
from medtransfer.segment.run import SegmentationRun

Labels = NDArray[np.uint8]


class Made:
    """The masks in a folder and what each was made from: ``made.json`` beside them.

    A mask is taken again only where models, post-processing, plan, image and version of this package are those that
    it was made from, by hash, and the file is as it was written.

    Parameters
    ----------
    run : SegmentationRun
    folder : path
    """

    def __init__(self, run: SegmentationRun, folder: str | Path) -> None:
        self.run, self.folder = run, Path(folder)
        self._by: dict[tuple[int, ...], str] = {}

    @cached_property
    def _known(self) -> dict[str, dict[str, str]]:
        try:
            found = json.loads((self.folder / "made.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _recipe(self, image: Image, folds: Sequence[int] | None) -> str:
        asked = tuple(range(len(self.run.split.folds)) if folds is None else folds)
        if asked not in self._by:
            parts = [medtransfer.__version__, self.run.plan.model_dump_json(), *map(str, asked)]
            for fold in asked:
                where = self.run.folder / f"fold-{fold}"
                parts += [file_digest(where / "model.safetensors"), file_digest(where / "finish.json")]
            self._by[asked] = fingerprint(*parts)
        affine = image.geometry.affine
        return fingerprint(self._by[asked], image.array, np.zeros(0) if affine is None else affine)

    def path(self, case: Case) -> Path:
        """Where the mask of a case stands."""
        return self.folder / f"{case.alias}.nii.gz"

    def get(self, case: Case, image: Image, folds: Sequence[int] | None) -> Labels | None:
        """The mask of a case, or None where it has to be made."""
        known, path = self._known.get(case.alias), self.path(case)
        if not isinstance(known, dict) or not path.is_file() or known.get("from") != self._recipe(image, folds):
            return None
        if known.get("sha256") != file_digest(path):
            return None
        try:
            labels = read(path, labels=True).array
        except ReadError:
            return None
        return labels.astype(np.uint8) if labels.shape == image.spatial_shape else None

    def put(self, case: Case, image: Image, folds: Sequence[int] | None) -> None:
        """Note what the mask of a case, just written, was made from."""
        self._known[case.alias] = {"from": self._recipe(image, folds), "sha256": file_digest(self.path(case))}
        write_atomically(self.folder / "made.json", json.dumps(self._known, indent=1) + "\n")
