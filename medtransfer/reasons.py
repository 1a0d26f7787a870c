"""Why a recipe is as it is: one line a choice, with its source."""

from __future__ import annotations

from medtransfer.recipe import Recipe, Task

_WHY: dict[str, tuple[str, str]] = {
    "method": (
        "below 1,000 cases frozen features with a regularised logistic regression; above, later stages move too",
        "measured with 50 to 4,700 radiographs; arXiv 2202.10054",
    ),
    "start": (
        "fine-tuning starts from the solved head, so that its first steps do not distort the features",
        "2202.10054",
    ),
    "tune": (
        "every parameter of what learns; scale and shift alone, or low rank, where cases are very few: try them",
        "arXiv 2003.00152, 2106.09685; 2102.05543",
    ),
    "lora_rank": ("only for tune: lora", "arXiv 2106.09685: small ranks suffice"),
    "unfreeze_from": (
        "early stages are general: they stay, and are computed once where images do not vary",
        "measured",
    ),
    "freeze_epochs": ("no epochs for the head alone where it is solved", "2202.10054"),
    "lr": ("of the head; AdamW", "AutoGluon's and nnU-Net's defaults"),
    "backbone_lr_scale": ("pretrained stages move less than the new head", "fastai, BiT"),
    "layer_decay": ("early stages are general and move least", "timm, MAE: .75"),
    "epochs": ("about 750 steps, whatever the size", "BiT-HyperRule: 500 steps for small sets"),
    "batch_size": ("where memory is short, fewer at once with gradients added up", "common practice"),
    "accumulate": ("the batch is large enough as it is", "common practice"),
    "checkpoint": ("only where two cases do not fit otherwise: it costs a third of the time", "arXiv 1604.06174"),
    "schedule": ("cosine after warm-up; polynomial for segmentation", "AutoGluon; nnU-Net"),
    "warmup": ("a tenth of the steps", "AutoGluon"),
    "weight_decay": ("mild, not for biases and normalisation", "AutoGluon"),
    "clip": ("one bad batch must not throw the weights far", "AutoGluon"),
    "patience": ("stop when validation no longer gets better", "common practice"),
    "average": ("the mean of the best checkpoints, if validation is not worse", "arXiv 2203.05482"),
    "ema": ("none: the best checkpoints are averaged instead", "arXiv 2203.05482"),
    "frozen_norms": ("batches of a small set spoil the statistics", "Keras' transfer-learning guide"),
    "class_weights": ("none: they distort the probabilities; the threshold handles prevalence", "arXiv 2202.09101"),
    "label_smoothing": ("none: it distorts the probabilities of few classes", "arXiv 1906.02629"),
    "focal": ("none: made for thousands of easy background boxes an image", "arXiv 1708.02002"),
    "mixup": ("none on small sets", "BiT-HyperRule: none below 20,000 images"),
    "views": (
        "a new view each epoch; a fixed number where frozen parts are to see each once",
        "measured: time against loss",
    ),
    "cache": (
        "what is frozen is kept as computed, so that the numbers stay those of the uncached way",
        "exact by test",
    ),
}


_OF_MASKS: dict[str, tuple[str, str]] = {  # what a segmentation does for another reason
    "method": ("encoder and decoder learn together: every voxel is a label", "nnU-Net, doi 10.1038/s41592-020-01008-z"),
    "start": ("a decoder is not solved for", "none"),
    "unfreeze_from": ("nothing is frozen", "nnU-Net"),
    "freeze_epochs": ("none; with few cases and a pretrained encoder try finetune", "2202.10054"),
    "lr": ("of encoder and decoder; AdamW", "measured on the hippocampus set"),
    "backbone_lr_scale": ("the encoder learns as fast as the decoder", "nnU-Net"),
    "layer_decay": ("the same for all stages", "nnU-Net"),
    "epochs": ("5,000 to 10,000 batches with the plan's steps an epoch, whatever the size", "measured"),
    "batch_size": ("the plan's counts: patches a step", "plan.yaml"),
    "patience": ("never before the end: with a rate that falls to zero the best comes last", "nnU-Net: 1,000 epochs"),
    "average": ("the moving average does it", "arXiv 1803.05407"),
    "ema": (
        "weights averaged over some 500 steps, a tenth of the shortest training; less at its beginning",
        "Polyak and Juditsky 1992",
    ),
}


def reasons(recipe: Recipe, task: Task = "classification") -> str:
    """A table of a recipe's choices: value, reason, source.

    Examples
    --------
    >>> print(reasons(Recipe.for_size(100)).splitlines()[0][:23])
    method         logistic
    >>> len(reasons(Recipe.for_size(5000)).splitlines()) > 10
    True
    """
    solved = ("method", "class_weights", "views", "cache")  # what else there is does not concern a solved head
    names = solved if recipe.method == "logistic" else tuple(_WHY)
    why = _WHY | (_OF_MASKS if task == "segmentation" else {})
    rows = [(name, str(getattr(recipe, name)), *why[name]) for name in names]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{n:<{max(14, first)}} {v:<{second}}  {said} [{source}]" for n, v, said, source in rows)
