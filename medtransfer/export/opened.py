"""A run folder, an exported file or a bundle, opened: whatever it is, it answers in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import RunError
from medtransfer.export.card import Card, card_of, folds_of

if TYPE_CHECKING:
    from torch import nn

    from medtransfer.dataset import Prepared
    from medtransfer.image import Image

BUNDLED = Path("models") / "model.pt2"
CARD, TENSORS = "card.json", "model.safetensors"
AT_ONCE = 2**22  # values of images that go through together: 83 gray images of 224 x 224, 2 volumes of 128 x 128 x 128
Answer = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]


@dataclass
class Exported:
    """Something that answers; made by :func:`open_exported`.

    Parameters
    ----------
    card : Card
    answer : callable
        Prepared images, or windows, ``[n, channels, ...]`` to probabilities or values.
    """

    card: Card
    answer: Answer

    @property
    def structures(self) -> tuple[str, ...]:
        """Of a segmentation, its classes after the background."""
        return self.card.names

    def answers(self, images: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities, or values of a regression, ``[n, classes]`` of prepared images; of large ones few at once."""
        if not len(images):
            return np.zeros((0, self.card.outputs))
        size = max(1, AT_ONCE // images[0].size)
        parts = [self.answer(np.stack(images[i : i + size])) for i in range(0, len(images), size)]
        return np.concatenate(parts).astype(np.float64)

    def says(self, prepared: Prepared, indices: Sequence[int], *, progress: bool = False) -> NDArray[np.float64]:
        """Probabilities, or values of a regression, ``[n, classes]`` of prepared cases."""
        from tqdm import tqdm

        prepared.load(indices)
        found = [self.answers([])]
        with tqdm(total=len(indices), desc="predict", unit="case", disable=None if progress else True) as bar:
            for start in range(0, len(indices), 32):
                part = indices[start : start + 32]
                found.append(self.answers([prepared.one(i) for i in part]))
                bar.update(len(part))
        return np.concatenate(found)

    def segment(self, image: Image, *, where: str = "") -> NDArray[np.uint8]:
        """Mask of any image: class of each of its voxels, post-processed."""
        import torch

        from medtransfer.segment.finish import apply_finish, voxel_mm3
        from medtransfer.segment.infer import segment_by

        predict = lambda views: torch.from_numpy(np.asarray(self.answer(views.cpu().numpy()), np.float32))  # noqa: E731
        labels = segment_by(predict, self.card.planned(), image, where=where)
        return apply_finish(labels, self.card.finish, voxel_mm3(image.geometry.spacing_mm))


def open_exported(path: str | Path | Exported, *, device: str = "cpu") -> Exported:
    """Open a run folder, or what :func:`medtransfer.export.export` wrote: ``.onnx``, ``.pt2``, a bundle, a folder.

    No form runs code that comes with the data: a bundle's configuration is not read, ``.pt2`` files are searched first
    (:func:`medtransfer.export.program.load_program`), tensors come from safetensors.

    Parameters
    ----------
    path : path or Exported
        What is open already is given back.
    device : str
        Where torch computes; ONNX Runtime computes on the CPU.

    Raises
    ------
    RunError
        Where it is none of these, damaged or incomplete.
    MissingPackage
        Where a package that runs it is not installed.
    """
    if isinstance(path, Exported):
        return path
    path = Path(path)
    if path.is_file() and path.suffix == ".onnx":
        from medtransfer.export.graph import Graph

        graph = Graph(path)
        return Exported(graph.card, graph)
    if path.is_file() and path.suffix == ".pt2":
        return _program(path, device)
    if (path / BUNDLED).is_file():
        return _program(path / BUNDLED, device)
    if (path / "run.json").is_file():
        from medtransfer.export.network import load_network, network_of
        from medtransfer.run import read_state

        folds = folds_of(path, None)
        description, models = load_network(path, folds, masks=read_state(path)["asked"].get("task") == "segmentation")
        card = card_of(path, description, folds)
        return Exported(card, _torch(network_of(models, card), device))
    if (path / CARD).is_file() and list(path.glob("fold-*/" + TENSORS)):
        from medtransfer.export.network import load_network, network_of

        card = Card.from_json((path / CARD).read_text(encoding="utf-8"), where=path.name)
        folds = sorted(int(p.parent.name.removeprefix("fold-")) for p in path.glob("fold-*/" + TENSORS))
        _, models = load_network(path, folds, masks=card.task == "segmentation")
        return Exported(card, _torch(network_of(models, card), device))
    raise RunError(
        "this is neither a run nor an exported model", where=path.name, got=path.suffix or "a folder",
        fix="give a run folder, an .onnx or .pt2 file, or a bundle",
    )  # fmt: skip


def _program(path: Path, device: str) -> Exported:
    from medtransfer.export.program import load_program

    network, card = load_program(path)
    return Exported(card, _torch(network, device))


def _torch(network: nn.Module, device: str) -> Answer:
    import torch

    network = network.to(device)

    def answer(array: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        with torch.inference_mode():
            return network(torch.from_numpy(array).to(device)).cpu().numpy()  # type: ignore[no-any-return]

    return answer
