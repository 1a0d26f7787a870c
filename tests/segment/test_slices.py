"""A 2D network on volumes, several networks together, and a training that is watched."""

import json

import numpy as np
import pytest
import torch
from small_masks import config, write_balls

from medtransfer.config import Experiment
from medtransfer.image import Geometry, Image
from medtransfer.segment.grid import in_slices
from medtransfer.segment.infer import segment_image
from medtransfer.segment.masks import read_pair
from medtransfer.segment.network import load_segmenter
from medtransfer.segment.plan import Plan
from medtransfer.segment.run import SegmentationRun

TURNED = np.array([[0, 0, 2.0, 4], [-1.5, 0, 0, 3], [0, 1, 0, 2], [0, 0, 0, 1]])


def test_models_speak_together_by_the_mean_of_their_chances():
    plan = Plan(patch=(16, 16, 16), width=4, strides=((1, 1, 1), (2, 2, 2)), scale=(0.0, 1.0))
    models = [load_segmenter("random/unet", classes=3, width=4, strides=plan.steps, seed=s).eval() for s in range(3)]
    array = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    image = Image(array, Geometry.from_affine(np.diag([-1.0, -1, 1, 1])))  # as the network looks at it: no axis turns
    with torch.no_grad():
        x = torch.from_numpy(array.transpose(2, 1, 0).copy())[None, None]
        each = [torch.softmax(m(torch.cat([x, x])), 1)[0].numpy() for m in models]
    by_hand = np.mean(each, axis=0).argmax(0).transpose(2, 1, 0)
    assert np.array_equal(segment_image(models, plan, image), by_hand)
    assert not np.array_equal(segment_image(models[:1], plan, image), by_hand)


def test_all_folds_answer_for_a_new_image(tmp_path):
    root = write_balls(tmp_path / "balls")
    (tmp_path / "seg.yaml").write_text(config(root, tmp_path / "run", split="{folds: 2, val: 0.3}",
                                              recipe="{method: full, freeze_epochs: 0, epochs: 1}"))  # fmt: skip
    experiment = Experiment.from_file(tmp_path / "seg.yaml")
    from medtransfer import pipeline

    result = pipeline.train(experiment, progress=False)
    run = result.run
    image, _, _ = read_pair(run.cohort.cases[0], 3)
    models = [run.model(f).eval() for f in (0, 1)]
    assert not all(torch.equal(a, b) for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(),
                                                     strict=True))  # fmt: skip
    nothing = {"1": None, "2": None}
    for fold in (0, 1):
        (run.folder / f"fold-{fold}" / "finish.json").write_text(json.dumps(nothing))
    assert np.array_equal(run.segment(image), segment_image(models, run.plan, image))
    assert np.array_equal(run.segment(image, folds=[1]), segment_image(models[1:], run.plan, image))


@pytest.mark.parametrize("affine", [np.eye(4), TURNED])
def test_slices_stand_as_axial_slices_are_read(affine):
    array = np.random.default_rng(0).random((5, 6, 7))
    image = Image(array, Geometry.from_affine(affine), padding=array > 0.9)
    slices = in_slices(image)
    codes = image.geometry.orientation
    axis = [next(i for i, c in enumerate(codes) if c in pair) for pair in ("IS", "PA", "LR")]
    assert len(slices) == array.shape[axis[0]]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    assert slices[0].geometry.spacing_mm == pytest.approx((lengths[axis[1]], lengths[axis[2]]))
    inverse = np.linalg.inv(affine)
    corner = affine @ [*(np.array(array.shape) - 1), 1]
    low, high = np.minimum(corner[:3], affine[:3, 3]), np.maximum(corner[:3], affine[:3, 3])
    for z, r, c in ((0, 0, 0), (1, 2, 3), (len(slices) - 1, 1, 0)):  # up, to the back, to the left: in millimetres
        step = lengths[axis]
        place = np.array([high[0] - c * step[2], high[1] - r * step[1], low[2] + z * step[0], 1])
        index = tuple(np.rint(inverse @ place)[:3].astype(int))
        assert slices[z].array[r, c] == array[index]
        assert slices[z].padding[r, c] == image.padding[index]


def test_a_2d_network_segments_volumes_slice_by_slice(tmp_path):
    root = write_balls(tmp_path / "balls")
    text = config(root, tmp_path / "run", plan="{patch: [16, 16], width: 8, steps_per_epoch: 20, spacing_mm: [1, 1]}",
                  recipe="{method: full, freeze_epochs: 0, epochs: 4, lr: 0.01, backbone_lr_scale: 1}")  # fmt: skip
    (tmp_path / "seg.yaml").write_text(text)
    from medtransfer import pipeline

    result = pipeline.train(Experiment.from_file(tmp_path / "seg.yaml"), progress=False)
    assert result.run.plan.dims == 2
    for score in result.evaluation.scores:
        assert score["large"].dice > 0.7
    cohort = result.run.cohort
    again = SegmentationRun.open(tmp_path / "run", cohort)
    image, reference, _ = read_pair(cohort.cases[9], 3)
    assert again.segment(image).shape == reference.shape


def test_a_training_of_masks_is_watched(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = write_balls(tmp_path / "balls")
    text = config(root, tmp_path / "run", track="{tensorboard: true}",
                  recipe="{method: full, freeze_epochs: 0, epochs: 2}")  # fmt: skip
    (tmp_path / "seg.yaml").write_text(text)
    from medtransfer import pipeline

    pipeline.train(Experiment.from_file(tmp_path / "seg.yaml"), progress=False)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "fold-0"))
    found.Reload()
    losses = [e.value for e in found.Scalars("train_loss")]
    logged = [json.loads(line)["train_loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(logged)
    tested = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "."))
    tested.Reload()
    assert "test_dice" in tested.Tags()["scalars"]
    history = json.loads((tmp_path / "run" / "fold-0" / "history.json").read_text())
    assert "seconds" not in history[0]  # what takes another time each run is not part of the model's bytes
