"""How a model is fine-tuned: which parts learn when, and how fast. Pure functions of sizes and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from medtransfer.model import Model

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Tune = Literal["all", "norms", "biases", "lora"]
Task = Literal["classification", "segmentation"]


class Recipe(BaseModel):
    """A recipe for fine-tuning on a small set.

    Parameters
    ----------
    method : {'logistic', 'probe', 'finetune', 'full'}
        ``logistic``: frozen features and L2 logistic regression, its strength chosen by inner
        patient-grouped cross-validation. ``probe``: the new head alone learns by gradient descent on
        frozen features. ``finetune``: the head first (``freeze_epochs``), then the stages from
        ``unfreeze_from`` on as well (linear probing, then fine-tuning: Kumar et al. 2022, arXiv 2202.10054).
        ``full``: the same with every stage.
    tune : {'all', 'norms', 'biases', 'lora'}
        What learns in a stage that learns: every parameter; scale and shift of the normalisation (Frankle
        et al. 2021, arXiv 2003.00152); biases and shifts; or low-rank additions to the weights of linear
        and convolution layers (Hu et al. 2021, arXiv 2106.09685), merged into the weights that are saved.
    lora_rank : int
        Rank of these additions.
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
    start : {'random', 'logistic'}
        Where the head starts: small random weights, or the logistic regression of method ``logistic``, which then
        stays the result unless validation gets better.
    unfreeze_from : str, int or None
        First stage that learns afterwards, by name or counted from the end (-2: the last two); None lets all of
        them learn. What lies before it is computed once.
    batch_size : int
        Cases a batch. Where they do not fit into the memory, fewer are computed at once and their gradients added up.
    accumulate : int
        Batches whose gradients are added up before the weights move.
    checkpoint : 'auto' or bool
        Let blocks that learn compute their activations again in the backward pass instead of keeping them: less memory,
        about a third more time, the same gradients (Chen et al. 2016, arXiv 1604.06174). ``auto`` does it where not
        even two cases fit otherwise.
    schedule : {'cosine', 'one_cycle', 'poly'}
        How the rate falls after the warm-up: half a cosine; the same from a slower start (Smith 2018,
        arXiv 1803.09820); or ``(1 - t) ** 0.9`` (nnU-Net).
    warmup : float
        Share of the steps of a phase in which the rate rises.
    weight_decay : float
        Of AdamW; not for biases and normalisation.
    clip : float
        Largest norm of the gradient.
    patience : int
        Epochs without a better validation loss after which a phase ends; of a segmentation validations, of which there
        are about twenty.
    average : int
        How many of the best checkpoints are averaged, greedily: one that makes validation worse is left out
        (Wortsman et al. 2022, arXiv 2203.05482).
    ema : float
        Decay a step of an exponential moving average of the weights, which is then what is validated and kept; 0: none.
        It begins with :meth:`ema_decay`, so that short trainings are not held back by where they started.
    class_weights : float
        0 counts every case alike, 1 (or true) weighs classes inversely to their frequency, between them beta of
        the effective number of samples (Cui et al. 2019, arXiv 1901.05555). Off by default: it distorts
        the probabilities, and a threshold chosen on validation does the same for the operating point.
    label_smoothing : float
        Share of the target spread over all classes.
    focal : float
        Exponent by which well-classified cases count less (Lin et al. 2017, arXiv 1708.02002); 0: cross-entropy.
    mixup : float
        Both parameters of the beta distribution from which two cases are mixed, at the input of the first
        layer that learns (Zhang et al. 2018, arXiv 1710.09412; Verma et al. 2019, arXiv 1806.05236); 0: none.
    views : int
        Augmented views of each training case, used in turn; what is frozen sees each of them once. 0: a new view
        every epoch, which leaves nothing to be computed once where images vary.
    cache : {'float32', 'float16', 'off'}
        How the activations at the border of what is frozen are kept; float16 halves their size.
    frozen_norms : bool
        Keep batch normalisation as pretrained in learning stages too: statistics always, scale and shift unless
        ``tune`` names them.

    Examples
    --------
    >>> recipe = Recipe(epochs=20, freeze_epochs=5, unfreeze_from="layer4")
    >>> stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    >>> recipe.trainable(0, stages), recipe.trainable(5, stages)
    ((), ('layer4',))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["logistic", "probe", "finetune", "full"] = "finetune"
    tune: Tune = "all"
    lora_rank: Count = 8
    epochs: Count = 40
    lr: Positive = 3e-4
    backbone_lr_scale: Share = 0.1
    layer_decay: Share = 0.75
    freeze_epochs: Annotated[int, Field(ge=0)] = 5
    start: Literal["random", "logistic"] = "random"
    unfreeze_from: Annotated[int, Field(le=-1)] | str | None = None
    batch_size: Count = 16
    accumulate: Count = 1
    checkpoint: Literal["auto"] | bool = "auto"
    schedule: Literal["cosine", "one_cycle", "poly"] = "cosine"
    warmup: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    clip: Positive = 1.0
    patience: Count = 10
    average: Count = 1
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Share = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    focal: Annotated[float, Field(ge=0)] = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    views: Annotated[int, Field(ge=0)] = 0
    cache: Literal["float32", "float16", "off"] = "float32"
    frozen_norms: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.method == "full" and self.unfreeze_from is not None:
            raise ValueError("method full lets every stage learn; with unfreeze_from it is method finetune")
        return self

    @classmethod
    def for_size(cls, n: int, dims: Literal[2, 3] = 2, task: Task = "classification") -> Recipe:
        """A recipe for n training cases; :func:`medtransfer.reasons.reasons` says why each choice was made.

        Examples
        --------
        >>> Recipe.for_size(400).method, Recipe.for_size(4000).method, Recipe.for_size(4000).start
        ('logistic', 'finetune', 'logistic')
        """
        if task == "segmentation":
            whole = cls(method="full", freeze_epochs=0, lr=1e-3, backbone_lr_scale=1, layer_decay=1, schedule="poly")
            epochs = max(20, min(200, 40000 // n))
            few = {"batch_size": 2 if dims == 3 else 8, "epochs": epochs, "patience": epochs, "ema": 0.998}
            return whole.model_copy(update=few)
        if n < 1000:
            return cls(method="logistic")
        epochs = max(3, min(20, round(24000 / n)))
        part = cls(start="logistic", unfreeze_from=-2, freeze_epochs=0, lr=1e-3, backbone_lr_scale=0.2, average=3)
        few = {"batch_size": 8 if dims == 3 else 32, "epochs": epochs, "patience": max(3, epochs)}
        return part.model_copy(update=few)

    def with_head(self) -> Recipe:
        """The same for a head that no linear model fits, such as hidden layers or attention: it learns by descent.

        Examples
        --------
        >>> Recipe.for_size(100).with_head().method, Recipe.for_size(4000).with_head().start
        ('probe', 'random')
        """
        if self.method == "logistic":
            return Recipe(method="probe", epochs=100, lr=1e-3, patience=20, weight_decay=1e-2)
        return self.model_copy(update={"start": "random", "freeze_epochs": max(1, self.epochs // 4)})

    @property
    def learns(self) -> bool:
        """Whether any stage of the backbone ever learns."""
        return self.method in ("finetune", "full") and self.freeze_epochs < self.epochs

    def phases(self) -> tuple[tuple[int, int], ...]:
        """First and last-but-one epoch of each phase: the head alone, then with the backbone.

        Examples
        --------
        >>> Recipe(epochs=10, freeze_epochs=3).phases(), Recipe(method="probe", epochs=10).phases()
        (((0, 3), (3, 10)), ((0, 10),))
        """
        turn = self.freeze_epochs if self.learns else self.epochs
        return tuple((a, b) for a, b in ((0, turn), (turn, self.epochs)) if a < b)

    def trainable(self, epoch: int, stages: Sequence[str]) -> tuple[str, ...]:
        """Stages that learn in an epoch, besides the head."""
        if not self.learns or epoch < self.freeze_epochs:
            return ()
        first = self.unfreeze_from or 0
        return tuple(stages[list(stages).index(first) if isinstance(first, str) else first :])

    def view(self, epoch: int) -> int:
        """Which augmented view, counted from 1, the training cases show in an epoch.

        Examples
        --------
        >>> [Recipe(views=3).view(e) for e in range(5)], [Recipe().view(e) for e in range(3)]
        ([1, 2, 3, 1, 2], [1, 2, 3])
        """
        return 1 + (epoch % self.views if self.views else epoch)

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
        """Share of the peak learning rate at a step of a phase.

        Examples
        --------
        >>> recipe = Recipe(warmup=0.1)
        >>> [round(recipe.lr_factor(s, 100), 3) for s in (0, 9, 10, 55, 99)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
        >>> [round(Recipe(warmup=0.3, schedule="one_cycle").lr_factor(s, 100), 3) for s in (0, 15, 30, 65, 99)]
        [0.04, 0.52, 1.0, 0.5, 0.001]
        """
        rise = round(self.warmup * steps)
        if step < rise:
            if self.schedule == "one_cycle":
                return 1 - 0.96 * 0.5 * (1 + math.cos(math.pi * step / rise))
            return (step + 1) / rise
        t = (step - rise) / max(1, steps - rise)
        return float((1 - t) ** 0.9) if self.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * t))

    def ema_decay(self, step: int) -> float:
        """Decay of the moving average at a step of a phase, ``(1 + step) / (10 + step)`` up to ``ema``.

        Examples
        --------
        >>> [round(Recipe(ema=0.998).ema_decay(step), 3) for step in (0, 90, 10_000)]
        [0.1, 0.91, 0.998]
        """
        return min(self.ema, (1 + step) / (10 + step))

    def describe(self, model: Model) -> list[dict[str, object]]:
        """What will be trained when, one entry a phase: epochs, stages, parameters that learn, peak rates."""
        from medtransfer.tuned import Adapters, learning

        stages, found = list(model.stages), []
        if self.method == "logistic":
            count = sum(p.numel() for p in model.head.parameters())
            return [{"epochs": "none: solved", "learns": ["head"], "parameters": count, "computed_once": stages}]
        rates = self.stage_lr(stages)
        for first, end in self.phases():
            chosen = self.trainable(first, stages)
            parameters = sum(p.numel() for _, p in learning(model, chosen, self.tune, self.frozen_norms))
            if chosen and self.tune == "lora":
                parameters += sum(p.numel() for p in Adapters(model, chosen, self.lora_rank, seed=0).parameters())
            found.append(
                {
                    "epochs": f"{first + 1} to {end}",
                    "learns": [*chosen, "head"],
                    "tune": self.tune if chosen else "head",
                    "parameters": parameters,
                    "lr": {s: rates[s] for s in chosen} | {"head": self.lr},
                    "computed_once": stages[: len(stages) - len(chosen)],
                }
            )
        return found
