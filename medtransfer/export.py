"""Export: a model with all it needs to be used elsewhere, and nothing of the patients it learned from."""

from __future__ import annotations

import json
from pathlib import Path

from medtransfer.errors import ConfigError
from medtransfer.run import environment, load_checkpoint, read_state, save_checkpoint, write, write_json


def export_model(run: Path, out: Path, *, fold: int = 0) -> Path:
    """Write ``model.safetensors`` and ``card.json`` into a new folder.

    Parameters
    ----------
    run : Path
        A finished run.
    out : Path
        Folder to make; it must not exist.
    fold : int
        Whose model.

    Returns
    -------
    Path
        The folder. The card holds preparation, classes, the description of the network (from which
        :func:`medtransfer.run.load_checkpoint` builds it again) and versions.

    Raises
    ------
    RunError
        Where the run is not there.
    ConfigError
        Where the folder exists.
    """
    state = read_state(run)
    if out.exists():
        raise ConfigError("the folder exists already", where=out.name, fix="name another one")
    if state["asked"].get("task") == "segmentation":
        raise ConfigError("a segmentation cannot be exported yet", where=run.name, fix="medtransfer predict RUN IMAGE")
    model = load_checkpoint(run / f"fold-{fold}" / "model.safetensors")
    write(
        out / "README.txt",
        "A medtransfer model: model.safetensors with its description, card.json with its preparation.\n",
    )
    save_checkpoint(out / "model.safetensors", model.state_dict(), {"description": model.description.to_json()})
    asked = state["asked"]
    card = {
        "classes": asked["classes"],
        "prepare": asked["prepare"],
        "description": json.loads(model.description.to_json()),
        "environment": environment(),
    }
    metrics = run / "metrics.json"
    if metrics.is_file():
        stored = json.loads(metrics.read_text(encoding="utf-8"))
        threshold = stored.get("threshold")
        if isinstance(threshold, dict):  # of the threshold only its values: the rest names validation cases
            card["threshold"] = {k: threshold.get(k) for k in ("rule", "by_fold")}
    write_json(out / "card.json", card)
    return out
