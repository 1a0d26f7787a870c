"""Export: a model with all it needs to be used elsewhere, and nothing of the patients it learned from.

::

    weights   a folder: the folds' tensors and the card, for medtransfer
    onnx      one file for ONNX Runtime
    torch     one file for torch.export.load
    bundle    a folder that monai.bundle verifies and runs
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medtransfer.errors import ConfigError

Form = Literal["weights", "onnx", "torch", "bundle"]
SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}

__all__ = ["Form", "export"]


def export(run: str | Path, out: str | Path, *, to: Form = "weights", fold: int | None = None) -> Path:
    """Write a finished run's model in a form that other programs run.

    Parameters
    ----------
    run : path
        A finished run, of any task.
    out : path
        File (``.onnx``, ``.pt2``) or folder to make; it must not exist.
    to : {'weights', 'onnx', 'torch', 'bundle'}
        ``onnx`` needs the extra of that name. All but ``weights`` hold the folds in one graph that takes prepared
        images in [0, 1] and answers with averaged probabilities (a regression with values; a segmentation with class
        probabilities of a window, mirrored views averaged).
    fold : int or None
        Whose model; None exports all folds together.

    Returns
    -------
    Path
        What was written. The card in it holds preparation, names of the classes, thresholds and versions.

    Raises
    ------
    RunError
        Where the run is not there or not complete.
    ConfigError
        Where ``out`` exists or has another suffix, or the network cannot be written in this form.
    """
    from medtransfer.export.card import card_of, folds_of
    from medtransfer.export.network import load_network, network_of
    from medtransfer.export.opened import CARD, TENSORS
    from medtransfer.export.program import program_of, save_program
    from medtransfer.run import read_checkpoint, read_state, save_checkpoint, write

    run, out = Path(run), Path(out)
    if out.exists():
        raise ConfigError("there is something of this name already", where=out.name, fix="name another one")
    if out.suffix != SUFFIX.get(to, out.suffix):
        raise ConfigError(f"--to {to} writes {SUFFIX[to]} files", where=out.name, fix=f"{out.stem}{SUFFIX[to]}")
    masks = read_state(run)["asked"].get("task") == "segmentation"
    folds = folds_of(run, fold)
    description, models = load_network(run, folds, masks=masks)
    card = card_of(run, description, folds)
    if to == "weights":
        for number in folds:  # of the facts in the header only the description
            tensors, facts = read_checkpoint(run / f"fold-{number}" / TENSORS)
            save_checkpoint(out / f"fold-{number}" / TENSORS, tensors, {"description": facts["description"]})
        write(out / CARD, card.to_json() + "\n")
        return out
    program = program_of(network_of(models, card), card)
    if to == "torch":
        save_program(program, card, out)
    elif to == "onnx":
        from medtransfer.export.graph import save_graph

        save_graph(program, card, out)
    else:
        from medtransfer.export.bundle import save_bundle

        save_bundle(program, card, out)
    return out
