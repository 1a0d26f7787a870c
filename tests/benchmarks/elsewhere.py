"""ResNet-50 trained as users of other packages do; one package a process. ``peers.py`` and ``tuning_peers.py`` call it.

    python tests/benchmarks/elsewhere.py lightning frozen --side 64 --images 512 --epochs 2

``frozen``: a new head on a backbone that is recomputed every epoch; ``stage``: the last stage learns too; ``full``:
everything learns, with flips and small rotations. ``onnxruntime forward`` and ``eager step`` are yardsticks.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from figures import result

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Clock:
    """Wall and processor seconds of each epoch."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def start(self, *_: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def stop(self, *_: Any) -> None:
        self.wall.append(time.perf_counter() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])


def images_of(n: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images of noise, and a label each."""
    return np.random.default_rng(0).integers(0, 256, (n, side, side), np.uint8), np.arange(n) % 2


def network(way: str) -> Any:
    """torchvision's ResNet-50 with a new head, and what learns set as its tutorial does."""
    import torch
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    learns = {"frozen": ("fc",), "stage": ("layer4", "fc"), "full": ("",)}[way]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith(learns)
    model.fc = torch.nn.Linear(2048, 2)
    return model


def loader(asked: argparse.Namespace) -> Any:
    """torchvision's transforms for each image in turn."""
    import torch
    from torchvision.transforms import v2

    images, labels = images_of(asked.images, asked.side)
    vary = [v2.RandomHorizontalFlip(), v2.RandomRotation(10)] if asked.way == "full" else []
    steps = v2.Compose([v2.ToImage(), *vary, v2.Grayscale(3), v2.ToDtype(torch.float32, scale=True),
                        v2.Normalize(MEAN, STD)])  # fmt: skip

    class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> tuple[Any, int]:
            return steps(images[i]), int(labels[i])

    return torch.utils.data.DataLoader(Data(), asked.batch, shuffle=True)


def pytorch(asked: argparse.Namespace, clock: Clock) -> None:
    """The loop of the transfer learning tutorial."""
    import torch
    from torch.nn import functional as F

    model = network(asked.way).train()
    chosen = [p for p in model.parameters() if p.requires_grad]
    optimizer, batches = torch.optim.AdamW(chosen, 1e-4), loader(asked)
    for _ in range(asked.epochs):
        clock.start()
        for x, y in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
        clock.stop()


def lightning(asked: argparse.Namespace, clock: Clock) -> None:
    """A LightningModule as on its page about transfer learning: the frozen part in evaluation, without a graph."""
    import lightning as L
    import torch
    from torch.nn import functional as F

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(L.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = network(asked.way)
            self.head, self.model.fc = self.model.fc, torch.nn.Identity()

        def training_step(self, batch: Any, _: int) -> Any:
            if asked.way == "frozen":
                self.model.eval()
                with torch.no_grad():
                    seen = self.model(batch[0])
            else:
                seen = self.model(batch[0])
            loss = F.cross_entropy(self.head(seen), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 1e-4)

        def on_train_epoch_start(self) -> None:
            clock.start()

        def on_train_epoch_end(self) -> None:
            clock.stop()

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_epochs=asked.epochs, accelerator="cpu", enable_model_summary=False, **quiet).fit(
        Module(), loader(asked)
    )


def monai(asked: argparse.Namespace, clock: Clock) -> None:
    """SupervisedTrainer over a CacheDataset."""
    import torch
    from ignite.engine import Events
    from monai.data import CacheDataset, DataLoader
    from monai.engines import SupervisedTrainer
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        RandFlipd,
        RandRotated,
        RepeatChanneld,
        ScaleIntensityd,
    )

    images, labels = images_of(asked.images, asked.side)
    vary = [RandFlipd("image", prob=0.5, spatial_axis=1), RandRotated("image", range_x=0.1745, prob=1.0)]
    steps = Compose([
        EnsureChannelFirstd("image", channel_dim="no_channel"), ScaleIntensityd("image"),
        *(vary if asked.way == "full" else []), RepeatChanneld("image", 3), EnsureTyped("image"),
    ])  # fmt: skip
    rows = [{"image": x.astype(np.float32), "label": int(y)} for x, y in zip(images, labels, strict=True)]
    model = network(asked.way)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=asked.epochs,
        train_data_loader=DataLoader(CacheDataset(rows, steps, progress=False), batch_size=asked.batch, shuffle=True),
        network=model,
        optimizer=torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4),
        loss_function=torch.nn.CrossEntropyLoss(),
    )
    trainer.add_event_handler(Events.EPOCH_STARTED, clock.start)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, clock.stop)
    trainer.run()


def fastai(asked: argparse.Namespace, clock: Clock) -> None:
    """vision_learner, frozen, from image files as in its tutorials; one batch more is its validation part."""
    from fastai.vision.all import (
        Callback,
        ImageDataLoaders,
        accuracy,
        aug_transforms,
        resnet50,
        vision_learner,
    )
    from PIL import Image

    images, labels = images_of(asked.images + asked.batch, asked.side)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}_{y}.png" for i, y in enumerate(labels)]
        for file, x in zip(files, images, strict=True):
            Image.fromarray(x).save(file)
        vary = aug_transforms(max_lighting=0, max_zoom=1, max_warp=0, p_affine=1.0) if asked.way == "full" else None
        data = ImageDataLoaders.from_path_func(
            Path(folder), files, lambda f: f.stem.split("_")[1], valid_pct=asked.batch / len(files), bs=asked.batch,
            seed=0, num_workers=0, batch_tfms=vary,
        )  # fmt: skip
        learner = vision_learner(data, resnet50, pretrained=False, metrics=accuracy)
        learner.freeze() if asked.way == "frozen" else learner.unfreeze()

        class Timed(Callback):  # type: ignore[misc]
            order = -100

            def before_train(self) -> None:
                clock.start()

            def after_train(self) -> None:
                clock.stop()

        with learner.no_bar(), learner.no_logging():
            learner.fit(asked.epochs, 1e-3, cbs=Timed())


def keras(asked: argparse.Namespace, clock: Clock) -> None:
    """keras.applications and fit, as in its guide to transfer learning; on TensorFlow where it is installed."""
    import importlib.util

    os.environ.setdefault("KERAS_BACKEND", "tensorflow" if importlib.util.find_spec("tensorflow") else "torch")
    import keras as k

    if k.backend.backend() == "torch":
        import torch

        torch.set_flush_denormal(True)
    images, labels = images_of(asked.images, asked.side)
    base = k.applications.ResNet50(include_top=False, weights=None, input_shape=(asked.side, asked.side, 3))
    base.trainable = asked.way == "full"
    inside = x = k.Input((asked.side, asked.side, 1))
    if asked.way == "full":
        x = k.layers.RandomRotation(10 / 360)(k.layers.RandomFlip("horizontal")(x))
    x = k.layers.Concatenate()([k.layers.Rescaling(1 / 255)(x)] * 3)
    x = k.layers.GlobalAveragePooling2D()(base(x) if base.trainable else base(x, training=False))
    model = k.Model(inside, k.layers.Dense(2)(x))
    model.compile(k.optimizers.AdamW(1e-4), k.losses.SparseCategoricalCrossentropy(from_logits=True))

    class Timed(k.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, *_: Any) -> None:
            clock.start()

        def on_epoch_end(self, *_: Any) -> None:
            clock.stop()

    data: Any = (images[..., None].astype(np.float32), labels)
    model.fit(*data, batch_size=asked.batch, epochs=asked.epochs, callbacks=[Timed()], verbose=0)


def onnxruntime(asked: argparse.Namespace, clock: Clock) -> None:
    """One forward pass of the folded network, batches as they are."""
    import onnxruntime as ort
    import torch

    model = network("frozen").eval()
    model.fc = torch.nn.Identity()
    x = torch.rand(asked.batch, 3, asked.side, asked.side)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/network.onnx"
        torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(file, options)
    array = x.numpy()
    session.run(None, {"x": array})
    for _ in range(asked.epochs):
        clock.start()
        for _ in range(0, asked.images, asked.batch):
            session.run(None, {"x": array})
        clock.stop()


def eager(asked: argparse.Namespace, clock: Clock) -> None:
    """The compute of full fine-tuning alone: NCHW, AdamW as it comes, one batch that lies in memory."""
    import torch
    from torch.nn import functional as F

    model = network("full").train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    x, y = torch.rand(asked.batch, 3, asked.side, asked.side), torch.arange(asked.batch) % 2

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    for _ in range(asked.epochs):
        clock.start()
        for _ in range(0, asked.images, asked.batch):
            step()
        clock.stop()


WAYS: dict[str, Callable[[argparse.Namespace, Clock], None]] = {
    "pytorch": pytorch, "lightning": lightning, "keras": keras, "monai": monai, "fastai": fastai,
    "onnxruntime": onnxruntime, "eager": eager,
}  # fmt: skip
PACKAGES = tuple(WAYS)[:5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", choices=list(WAYS))
    parser.add_argument("way", choices=("frozen", "stage", "full", "forward", "step"))
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args()
    if asked.package != "keras":
        import torch

        torch.set_flush_denormal(True)  # random weights reach subnormal numbers, which cost several times as much
    clock = Clock()
    WAYS[asked.package](asked, clock)
    result(wall=clock.wall, cpu=clock.cpu)


if __name__ == "__main__":
    main()
