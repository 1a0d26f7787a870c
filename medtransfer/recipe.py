"""How a model is fine-tuned: which stages learn when, and how fast. Pure functions of sizes and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Recipe(BaseModel):
    """A recipe for fine-tuning on a small set.

    Parameters
    ----------
    method : {'logistic', 'probe', 'finetune'}
        ``logistic``: frozen features and L2 logistic regression, its strength chosen by inner
        patient-grouped cross-validation. ``probe``: the new head alone learns by gradient descent on
        frozen features. ``finetune``: the head first (``freeze_epochs``), then the stages from
        ``unfreeze_from`` on as well (linear probing, then fine-tuning: Kumar et al. 2022, arXiv 2202.10054).
    epochs : int
        Passes over the training cases, frozen ones included.
    lr : float
        Peak learning rate of the head.
    backbone_lr_scale : float
        Learning rate of the last stage relative to the head's.
    layer_decay : float
        Factor from each stage to the one before it, so that early layers move least.
    freeze_epochs : int
        Epochs in which only the head learns, on features computed once.
    unfreeze_from : str or None
        First stage that learns afterwards; None lets all of them learn.
    batch_size : int
        Cases a step.
    weight_decay : float
        Of AdamW; not for biases and normalisation.
    warmup : float
        Share of the steps of a phase in which the rate rises linearly; it falls as a cosine after.
    clip : float
        Largest norm of the gradient.
    patience : int
        Epochs without a better validation loss after which training stops.
    class_weights : bool
        Weigh classes inversely to their frequency in training. Off by default: it distorts the
        probabilities, and a threshold chosen on validation does the same for the operating point.
    label_smoothing : float
        Share of the target spread over all classes.
    frozen_norms : bool
        Keep the statistics of batch normalisation as pretrained in learning stages too.

    Examples
    --------
    >>> recipe = Recipe(epochs=20, freeze_epochs=5, unfreeze_from="layer4")
    >>> stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    >>> recipe.trainable(0, stages), recipe.trainable(5, stages)
    ((), ('layer4',))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["logistic", "probe", "finetune"] = "finetune"
    epochs: Annotated[int, Field(ge=1)] = 40
    lr: Positive = 3e-4
    backbone_lr_scale: Share = 0.1
    layer_decay: Share = 0.75
    freeze_epochs: Annotated[int, Field(ge=0)] = 5
    unfreeze_from: str | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    warmup: Share = 0.1
    clip: Positive = 1.0
    patience: Annotated[int, Field(ge=1)] = 10
    class_weights: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    frozen_norms: bool = True

    @classmethod
    def for_size(cls, n: int) -> Recipe:
        """A recipe for n training cases: the fewer there are, the less of the network moves.

        Below 50 cases frozen features with logistic regression; above, linear probing then
        fine-tuning with epochs that keep the number of steps between about 600 and 3000.

        Examples
        --------
        >>> Recipe.for_size(40).method, Recipe.for_size(400).epochs
        ('logistic', 40)
        """
        if n < 50:
            return cls(method="logistic")
        batch = 8 if n < 200 else 16 if n < 2000 else 32
        epochs = max(10, min(40, 3000 * batch // n))
        return cls(batch_size=batch, epochs=epochs, freeze_epochs=max(2, epochs // 8), patience=max(4, epochs // 4))

    def phases(self) -> tuple[tuple[int, int], ...]:
        """First and last-but-one epoch of each phase: the head alone, then with the backbone.

        Examples
        --------
        >>> Recipe(epochs=10, freeze_epochs=3).phases(), Recipe(method="probe", epochs=10).phases()
        (((0, 3), (3, 10)), ((0, 10),))
        """
        turn = self.epochs if self.method == "probe" else min(self.freeze_epochs, self.epochs)
        return tuple((a, b) for a, b in ((0, turn), (turn, self.epochs)) if a < b)

    def trainable(self, epoch: int, stages: Sequence[str]) -> tuple[str, ...]:
        """Stages that learn in an epoch, besides the head."""
        if self.method != "finetune" or epoch < self.freeze_epochs:
            return ()
        first = 0 if self.unfreeze_from is None else list(stages).index(self.unfreeze_from)
        return tuple(stages[first:])

    def stage_lr(self, stages: Sequence[str]) -> dict[str, float]:
        """Peak learning rate of each stage.

        Examples
        --------
        >>> Recipe(lr=1.0, backbone_lr_scale=0.1, layer_decay=0.5).stage_lr(["a", "b"])
        {'a': 0.05, 'b': 0.1}
        """
        last = len(stages) - 1
        return {s: self.lr * self.backbone_lr_scale * self.layer_decay ** (last - i) for i, s in enumerate(stages)}

    def lr_factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at a step of a phase: linear warm-up, then half a cosine to zero.

        Examples
        --------
        >>> recipe = Recipe(warmup=0.1)
        >>> [round(recipe.lr_factor(s, 100), 3) for s in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
        """
        rise = round(self.warmup * steps)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
