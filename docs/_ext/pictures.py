"""The pictures of the manual: drawn from code each time it is built."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREY, INK = "#2a6fb0", "#d9822b", "#8a8f98", "#20262e"
STEPS = (
    ("Image", "read, scan", "array and\ngeometry in mm"),
    ("Cohort", "from_dicom, from_csv", "cases, patients,\nreference"),
    ("Split", "split_by_patient", "patients in\none part only"),
    ("Prepare", "Prepare, Augment", "grid and\ngrey values"),
    ("Model", "load_model", "backbone\nand new head"),
    ("Run", "fit", "checkpoints,\na folder"),
    ("Predictions", "Run.predict", "held-out\npatients"),
    ("Evaluation", "evaluate, judge", "intervals,\ncontrols, flags"),
    ("Report", "write_report", "one HTML file\nand a card"),
)


def draw(made: Path, *, browser: bool = True) -> None:
    """All pictures into a folder."""
    import matplotlib

    matplotlib.use("Agg")
    made.mkdir(parents=True, exist_ok=True)
    (made / "flow.svg").write_text(flow(), encoding="utf-8")
    for name, paint in (("patients", patients), ("rates", rates), ("intervals", intervals), ("inflation", inflation)):
        _save(paint(), made / f"{name}.svg")
    report = made / "report_top.png"
    if not (browser and photograph(_report(made), report)):
        _save(stand_in(), report)


def flow() -> str:
    """The package in nine steps, as SVG."""
    width, height, gap = 128, 84, 26
    parts = []
    for i, (noun, verb, what) in enumerate(STEPS):
        row, col = divmod(i, 5)
        x, y = 10 + col * (width + gap), 14 + row * (height + 44)
        colour = BLUE if row == 0 else ORANGE
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="#fff" stroke="{colour}" '
                     'stroke-width="2"/>')  # fmt: skip
        parts.append(f'<text x="{x + width / 2}" y="{y + 22}" font-weight="600" font-size="15">{noun}</text>')
        parts.append(f'<text x="{x + width / 2}" y="{y + 40}" class="code">{verb}</text>')
        for k, line in enumerate(what.split("\n")):
            parts.append(f'<text x="{x + width / 2}" y="{y + 59 + 14 * k}" class="what">{escape(line)}</text>')
        if i in (0, 1, 2, 3, 5, 6, 7):
            middle = y + height / 2
            parts.append(f'<path d="M{x + width + 3},{middle} h{gap - 9}" class="arrow"/>')
    x, y = 10 + 4 * (width + gap) + width / 2, 14 + height
    parts.append(f'<path d="M{x},{y + 3} v18 H{10 + width / 2} v16" class="arrow"/>')
    total = 20 + 5 * width + 4 * gap
    style = (
        f"text{{font-family:sans-serif;text-anchor:middle;fill:{INK}}} .what{{font-size:11.5px;fill:#555}}"
        ".code{font-family:monospace;font-size:9.5px}"
        f".arrow{{fill:none;stroke:{GREY};stroke-width:2;marker-end:url(#tip)}}"
    )
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{GREY}"/></marker>'
    )
    box = f'viewBox="0 0 {total} 250" width="{total}" height="250"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img"><style>{style}</style><defs>{tip}</defs>'
        f'<rect width="{total}" height="250" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def patients() -> Any:
    """AUROC of features that only know who the patient is, split by image and by patient."""
    import matplotlib.pyplot as plt
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, KFold
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    counts = (1, 2, 4, 8)
    found: dict[str, list[list[float]]] = {"split by image": [], "split by patient": []}
    for images in counts:
        values: dict[str, list[float]] = {k: [] for k in found}
        for _ in range(12):
            who = np.repeat(np.arange(60), images)
            label = rng.permutation(np.arange(60) % 2)[who]
            features = rng.normal(size=(60, 8))[who] + 0.5 * rng.normal(size=(len(who), 8))
            ways = {"split by image": KFold(5, shuffle=True, random_state=0), "split by patient": GroupKFold(5)}
            for name, folds in ways.items():
                said = np.zeros(len(who))
                together = who if name == "split by patient" else None
                for train, test in folds.split(features, label, together):
                    near = KNeighborsClassifier(3).fit(features[train], label[train])
                    said[test] = near.predict_proba(features[test])[:, 1]
                values[name].append(float(roc_auc_score(label, said)))
        for name, row in values.items():
            found[name].append(row)
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for (name, rows), colour in zip(found.items(), (ORANGE, BLUE), strict=True):
        mean, spread = np.mean(rows, axis=1), np.std(rows, axis=1)
        axis.errorbar(range(len(counts)), mean, spread, marker="o", color=colour, label=name, capsize=3)
    axis.axhline(0.5, color=GREY, lw=1, ls=":")
    axis.set(xticks=range(len(counts)), xticklabels=counts, xlabel="images of each of 60 patients, random labels",
             ylabel="AUROC", ylim=(0.3, 1.03))  # fmt: skip
    return _tidy(figure, axis)


def rates() -> Any:
    """Learning rates of the recipe that the page on fine-tuning shows, step by step."""
    import matplotlib.pyplot as plt

    from medtransfer import Recipe

    recipe = Recipe(method="finetune", epochs=20, freeze_epochs=5, unfreeze_from="layer3", lr=3e-4)
    stages, steps = ("stem", "layer1", "layer2", "layer3", "layer4"), 25
    peak = {**recipe.stage_lr(stages), "head": recipe.lr}
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for name, colour in (("head", ORANGE), ("layer4", BLUE), ("layer3", "#7fb0dd")):
        for first, end in recipe.phases():
            if name != "head" and name not in recipe.trainable(first, stages):
                continue
            n = (end - first) * steps
            x = first + np.arange(n) / steps
            axis.plot(x, [peak[name] * recipe.lr_factor(s, n) for s in range(n)], color=colour,
                      label=name if end == recipe.epochs else None)  # fmt: skip
    axis.axvline(recipe.freeze_epochs, color=GREY, lw=1, ls=":")
    axis.text(0.15, 1.1e-6, "head alone", color=GREY, fontsize=9)
    axis.text(5.15, 1.1e-6, "layer3 and layer4 too; stem to layer2 stay frozen", color=GREY, fontsize=9)
    axis.set(yscale="log", ylim=(8e-7, 6e-4), xlabel="epoch", ylabel="learning rate")
    return _tidy(figure, axis)


def intervals() -> Any:
    """A study with a known AUROC, repeated: percentile intervals that draw patients, and images."""
    import matplotlib.pyplot as plt
    from scipy.special import ndtr
    from scipy.stats import rankdata

    def auroc(label: Any, score: Any) -> float:
        """Mann and Whitney's statistic as a share of the pairs."""
        n, m = int(label.sum()), int((1 - label).sum())
        return float((rankdata(score)[label == 1].sum() - n * (n + 1) / 2) / (n * m))

    rng = np.random.default_rng(4)
    people, images, studies, gap = 40, 4, 20, 1.2
    truth = float(ndtr(gap / np.sqrt(2)))
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.4), sharex=True, sharey=True, layout="constrained")
    bars: list[list[tuple[float, float, float]]] = [[], []]
    for _ in range(studies):
        label = np.repeat(np.arange(people) % 2, images)
        score = gap * label + np.sqrt(0.7) * np.repeat(rng.normal(size=people), images)
        score = score + np.sqrt(0.3) * rng.normal(size=people * images)
        value = auroc(label, score)
        rows = np.arange(people * images).reshape(people, images)
        for which in (0, 1):
            drawn = []
            for _ in range(300):
                whole = rows[rng.integers(people, size=people)].ravel()
                at = whole if which == 0 else rng.integers(len(label), size=len(label))
                if 0 < label[at].mean() < 1:
                    drawn.append(auroc(label[at], score[at]))
            bars[which].append((value, *np.percentile(drawn, [2.5, 97.5])))
    for axis, found, title in zip(axes, bars, ("patients drawn anew", "images drawn anew"), strict=True):
        held = 0
        for i, (value, low, high) in enumerate(found):
            inside = low <= truth <= high
            held += inside
            axis.plot([low, high], [i, i], color=BLUE if inside else ORANGE, lw=2)
            axis.plot(value, i, "o", ms=3, color=BLUE if inside else ORANGE)
        axis.axvline(truth, color=GREY, lw=1, ls=":")
        axis.set_title(f"{title}: {held} of {studies} hold the truth", fontsize=10)
        axis.set(xlabel="AUROC", yticks=[])
        axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


def inflation() -> Any:
    """A flat kernel and the cubes it becomes."""
    import matplotlib.pyplot as plt

    kernel = np.array([[0.2, 0.5, 0.2], [0.5, 1.0, 0.5], [0.2, 0.5, 0.2]])
    cubes = {"centre": np.zeros((3, 3, 3)), "mean": np.stack([kernel / 3] * 3)}
    cubes["centre"][1] = kernel
    for axis, name in enumerate(("acs: axial", "acs: coronal", "acs: sagittal")):
        cubes[name] = np.zeros((3, 3, 3))
        np.moveaxis(cubes[name], axis, 0)[1] = kernel
    figure = plt.figure(figsize=(9, 2.2), layout="constrained")
    flat = figure.add_subplot(1, 6, 1)
    flat.imshow(kernel, cmap="Blues", vmin=0, vmax=1)
    flat.set_title("2D kernel", fontsize=10)
    flat.axis("off")
    for i, (name, cube) in enumerate(cubes.items(), start=2):
        axis = figure.add_subplot(1, 6, i, projection="3d")
        shown = np.moveaxis(cube, 0, 2)  # the depth points upwards
        colours = plt.get_cmap("Blues")(shown)
        axis.voxels(shown > 0, facecolors=colours, edgecolor="#bbbbbb", linewidth=0.3)
        axis.set(xlim=(0, 3), ylim=(0, 3), zlim=(0, 3))
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    return figure


def _tidy(figure: Any, axis: Any) -> Any:
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


# --- pictures of a report ---------------------------------------------------------------------------------


def _report(made: Path) -> Path:
    """The report that the pages of the manual start from."""
    from here import _keep, _train

    return _keep("study", _train) / "runs" / "study" / "report.html"


def photograph(page: Path, target: Path, size: Sequence[int] = (1180, 900)) -> bool:
    """The top of a page as a browser shows it; False where there is none."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return False
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
             "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *flags, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}",
                   f"--screenshot={target}", page.resolve().as_uri()]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=180, check=False)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and target.is_file()


def stand_in() -> Any:
    """What stands where the report cannot be photographed: a note."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 1.2))
    axis.text(0.5, 0.5, "No browser was at hand when these pages were built: open report.html of a run.", ha="center",
              va="center", color=GREY)  # fmt: skip
    axis.axis("off")
    return figure
