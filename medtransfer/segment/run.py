"""The run folder of a segmentation: opened again, asked for masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.cohort import Cohort
from medtransfer.errors import RunError
from medtransfer.image import Image
from medtransfer.run import read_checkpoint, read_state, write_json
from medtransfer.segment.finish import apply_finish, voxel_mm3
from medtransfer.segment.infer import segment_image
from medtransfer.segment.network import Blueprint, Segmenter, build
from medtransfer.segment.plan import Plan
from medtransfer.segment.room import read_image
from medtransfer.split import Split

Labels = NDArray[np.uint8]


@dataclass
class SegmentationRun:
    """A trained segmentation; made by :func:`medtransfer.segment.train_segmentation`, opened again by :meth:`open`.

    The folder holds ``run.json``, ``split.json``, ``record.json``, ``plan.yaml`` and, for each fold,
    ``model.safetensors`` and ``finish.json`` (post-processing).

    Parameters
    ----------
    folder : Path
    cohort : Cohort
    split : Split
    plan : Plan
    structures : tuple of str
        Names of the classes after the background.
    device : str
        Where prediction runs.
    """

    folder: Path
    cohort: Cohort
    split: Split
    plan: Plan
    structures: tuple[str, ...]
    device: str = "cpu"
    _models: dict[int, Segmenter] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(cls, folder: str | Path, cohort: Cohort, *, device: str = "cpu") -> SegmentationRun:
        """Open a finished run beside the cohort it was trained on.

        Raises
        ------
        RunError
            Where the folder holds no finished segmentation.
        """
        folder = Path(folder)
        state = read_state(folder)
        if state.get("status") != "complete" or state["asked"].get("task") != "segmentation":
            raise RunError("there is no finished segmentation in this folder", where=folder.name)
        split = Split.load(folder / "split.json", cohort)
        asked = state["asked"]
        return cls(folder, cohort, split, Plan(**asked["plan"]), tuple(asked["structures"]), device)

    def model(self, fold: int = 0) -> Segmenter:
        """The best model of a fold, in evaluation mode."""
        if fold not in self._models:
            tensors, facts = read_checkpoint(self.folder / f"fold-{fold}" / "model.safetensors")
            model = build(Blueprint.from_json(facts["description"]))
            model.load_state_dict(tensors)
            self._models[fold] = model.to(self.device).eval()
        return self._models[fold]

    def forget(self, fold: int) -> None:
        """Read the model of a fold again when it is next asked for."""
        self._models.pop(fold, None)

    def rule(self, fold: int) -> dict[str, Any]:
        """The post-processing that was chosen on a fold's validation part."""
        return json.loads((self.folder / f"fold-{fold}" / "finish.json").read_text())  # type: ignore[no-any-return]

    def raw(self, index: int, *, fold: int) -> Labels:
        """Mask of a case of the cohort on its image's voxels, before post-processing."""
        case = self.cohort.cases[index]
        return segment_image([self.model(fold)], self.plan, read_image(case), device=self.device, where=case.alias)

    def segment(self, image: Image, *, folds: Sequence[int] | None = None, where: str = "") -> Labels:
        """Mask of any image: class of each of its voxels.

        Parameters
        ----------
        image : Image
        folds : sequence of int or None
            Whose models speak together; None asks all. The first one's post-processing is applied.
        where : str
            What the image is, for messages.
        """
        asked = list(range(len(self.split.folds))) if folds is None else list(folds)
        models = [self.model(f) for f in asked]
        labels = segment_image(models, self.plan, image, device=self.device, where=where)
        return apply_finish(labels, self.rule(asked[0]), voxel_mm3(image.geometry.spacing_mm), in_place=True)

    def record(self) -> dict[str, object]:
        """What the run wrote down about itself, for the report."""
        return json.loads((self.folder / "record.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def describe(self, facts: dict[str, object]) -> None:
        """Add facts to the run's record."""
        known = self.record() if (self.folder / "record.json").is_file() else {}
        write_json(self.folder / "record.json", known | facts)

    def __repr__(self) -> str:
        count = len(self.split.folds)
        return f"SegmentationRun({self.folder.name}: {count} fold(s), {', '.join(self.structures)})"
