"""A run leaves the house: every form gives its numbers, MONAI takes the bundle, and nothing is run blindly."""

import csv
import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import nibabel
import numpy as np
import pytest
import torch
from bundle_schema import SPECIFIED
from click.testing import CliRunner
from PIL import Image as Picture

import medtransfer as mt
from medtransfer.cli import cli
from medtransfer.errors import ConfigError, RunError
from medtransfer.export.card import Card
from medtransfer.export.opened import open_exported
from medtransfer.heads import Head
from medtransfer.io import read
from medtransfer.pipeline import predict_files
from medtransfer.run import save_checkpoint
from medtransfer.segment.network import load_segmenter
from medtransfer.segment.plan import Plan


def asked_of(model, prepare, **more):
    names = ["mild", "moderate", "severe"][: model.description.classes]
    return {"task": model.description.task, "classes": names, "prepare": prepare.model_dump(mode="json"), **more}


def write_run(folder, models, asked):
    """A finished run as far as its models are concerned, without a training."""
    for fold, model in enumerate(models):
        path = folder / f"fold-{fold}" / "model.safetensors"
        description = getattr(model, "blueprint", model.description).to_json()
        save_checkpoint(path, model.state_dict(), {"description": description, "epoch": "3"})
        if asked["task"] == "segmentation":
            (path.parent / "finish.json").write_text(json.dumps({"1": "largest", "2": None}))
    (folder / "run.json").write_text(json.dumps({"format": 1, "status": "complete", "asked": asked}))
    return folder


def scattered(model, seed):
    """The model with head weights that give other answers than even ones."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for p in model.head.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def by_hand(models, batch):
    """Mean of the folds' answers, by the models' own forward pass."""
    with torch.no_grad():
        logits = [m.eval()(torch.from_numpy(batch)).double() for m in models]
    task = models[0].description.task
    if task == "regression":
        return np.mean([z.numpy() for z in logits], axis=0)
    if task == "multilabel":
        return np.mean([1 / (1 + np.exp(-z.numpy())) for z in logits], axis=0)
    if task == "ordinal":
        above = [1 / (1 + np.exp(-z.numpy())) for z in logits]
        return np.mean([-np.diff(np.pad(a, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))) for a in above], axis=0)
    return np.mean([np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True) for z in logits], axis=0)


FORMS = {"onnx": "model.onnx", "torch": "model.pt2", "bundle": "bundle", "weights": "weights"}


def exported(run, base, forms=tuple(FORMS)):
    if "onnx" in forms:
        pytest.importorskip("onnxscript", reason="onnx is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return {to: mt.export(run, base / FORMS[to], to=to) for to in forms}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two folds, trained, its pictures in files, and the run's own predictions of them."""
    from small_cohorts import blobs

    base = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDTRANSFER_HOME", str(base / "home"))
        patch.setenv("MEDTRANSFER_CACHE", str(base / "cache"))
        cohort = blobs(n=24, side=32)
        split = mt.split_by_patient(cohort, folds=2, seed=0)
        model = mt.load_model("embedded/compact2d")
        prepare = mt.Prepare(size=(32, 32), scale="range")
        recipe = mt.Recipe(method="logistic")
        run = mt.fit(model, cohort, split, prepare, recipe, out=base / "run", progress=False)
        expected = np.mean([run.predict(range(5), fold=k).probability for k in (0, 1)], axis=0)
    files = []
    for i in range(5):
        files.append(base / f"{i}.png")
        Picture.fromarray(cohort.cases[i].image).save(files[-1])
    return run.folder, files, expected


@pytest.fixture(scope="module")
def shipped(trained, tmp_path_factory):
    """All forms of that run."""
    return exported(trained[0], tmp_path_factory.mktemp("shipped"))


def table(text):
    rows = list(csv.reader(text.splitlines()))
    return np.array([[float(v) for name, v in zip(rows[0], row, strict=True) if name[:2] == "p:"] for row in rows[1:]])


def test_every_form_predicts_what_the_run_predicts(trained, shipped):
    run, files, expected = trained
    wanted = predict_files(run, files, progress=False)
    assert np.allclose(table(wanted), expected, atol=2e-6)
    assert np.ptp(expected[:, 0]) > 0.1
    for to, path in shipped.items():
        found = predict_files(path, files, progress=False)
        assert found.splitlines()[0] == "row,case,p:no,p:yes,called"
        assert np.abs(table(found) - expected).max() < 1e-5, to
        called = [line.split(",")[-1] for line in found.splitlines()[1:]]
        assert called == [("no", "yes")[k] for k in expected.argmax(1)]
        one = open_exported(path)
        assert one.card.folds == 2
        assert one.answer(np.zeros((1, 1, 32, 32), np.float32)).shape == (1, 2)


def test_the_command_writes_and_reads_a_file(trained, tmp_path):
    pytest.importorskip("onnxscript", reason="onnx is not installed")
    run, files, _ = trained
    out = tmp_path / "model.onnx"
    done = CliRunner().invoke(cli, ["export", str(run), "--to", "onnx", "--out", str(out), "--fold", "1"])
    assert done.exit_code == 0, done.output
    assert Card.from_json(card_in(out)).folds == 1
    said = CliRunner().invoke(cli, ["predict", str(out), str(files[0]), "-q"])
    assert said.exit_code == 0, said.output
    assert table(said.output).shape == (1, 2)
    assert CliRunner().invoke(cli, ["predict", str(out), str(files[0]), "--as", "seg"]).exit_code == 2
    assert CliRunner().invoke(cli, ["export", str(run), "--to", "onnx", "--out", str(out)]).exit_code == 2  # is there
    wrong = CliRunner().invoke(cli, ["export", str(run), "--to", "torch", "--out", str(tmp_path / "model.pt")])
    assert wrong.exit_code == 2
    assert "model.pt2" in wrong.output


def card_in(path):
    import onnx

    return next(p.value for p in onnx.load(path).metadata_props if p.key == "medtransfer")


def test_a_frozen_backbone_is_kept_once(trained, shipped):
    size = (trained[0] / "fold-0" / "model.safetensors").stat().st_size
    assert shipped["torch"].stat().st_size < 1.5 * size


def test_the_graph_states_its_opset_its_free_axis_and_nothing_of_this_machine(trained, shipped):
    import onnx

    path = shipped["onnx"]
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert [(o.domain, o.version) for o in graph.opset_import if o.domain in ("", "ai.onnx")] == [("", 18)]
    image, answer = graph.graph.input[0], graph.graph.output[0]
    dims = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert (image.name, dims) == ("image", ["cases", 1, 32, 32])
    assert answer.name == "probability"
    card = json.loads(card_in(path))
    assert card["prepare"]["size"] == [32, 32]
    assert card["names"] == ["no", "yes"]
    held = path.read_bytes() + b"".join(zipfile_contents(shipped["torch"]))
    for word in (str(trained[0].parent), "site-packages", "small_cohorts", "test_export"):
        assert word.encode() not in held, word


def zipfile_contents(path):
    with zipfile.ZipFile(path) as archive:
        return [archive.read(n) for n in archive.namelist() if not n.split("/", 1)[1].startswith("data/weights/weight")]


@pytest.mark.parametrize("task", ["multilabel", "ordinal", "regression"])
def test_other_tasks(task, tmp_path):
    models = [scattered(mt.load_model("embedded/compact2d", classes=3, task=task), s) for s in (0, 1)]
    run = write_run(tmp_path / "run", models, asked_of(models[0], mt.Prepare(size=24)))
    batch = np.random.default_rng(0).random((3, 1, 24, 24), dtype=np.float32)
    expected = by_hand(models, batch)
    assert np.abs(expected - expected.mean()).max() > 1e-3
    forms = {"run": run, **exported(run, tmp_path, ("onnx", "torch"))}
    for form, path in forms.items():
        assert np.abs(open_exported(path).answer(batch) - expected).max() < 1e-5, form


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "attention"), [("slices", 0), ("neighbours", 4)])
def test_volumes_seen_slice_by_slice(depth, attention, tmp_path):
    model = scattered(mt.load_model("embedded/compact2d", dims=3, depth=depth, head=Head(attention=attention)), 0)
    run = write_run(tmp_path / "run", [model], asked_of(model, mt.Prepare(size=(20, 24, 5))))
    batch = np.random.default_rng(0).random((2, 1, 5, 24, 20), dtype=np.float32)
    for form, path in exported(run, tmp_path, ("onnx", "torch")).items():
        assert np.abs(open_exported(path).answer(batch) - by_hand([model], batch)).max() < 1e-5, form


@pytest.mark.slow
@pytest.mark.parametrize("attention", [0, 4])
def test_bags_of_any_size_with_absent_images(attention, tmp_path):
    model = scattered(mt.load_model("embedded/compact2d", head=Head(attention=attention)), 0)
    run = write_run(tmp_path / "run", [model], asked_of(model, mt.Prepare(size=24), bag=True))
    forms = exported(run, tmp_path, ("onnx", "torch"))
    rng = np.random.default_rng(0)
    for n, images in ((2, 4), (3, 1)):
        batch = rng.random((n, 1, images, 24, 24), dtype=np.float32)
        if images > 1:
            batch[0, :, 1:] = np.nan
        for form, path in forms.items():
            assert np.abs(open_exported(path).answer(batch) - by_hand([model], batch)).max() < 1e-5, form
    with pytest.raises(ConfigError, match="not bags"):
        mt.export(run, tmp_path / "bundle", to="bundle")


SLOWER = pytest.param("random/vit_ti_16", 2, 32, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "dims", "side"), [("random/resnet18", 2, 32), ("embedded/compact3d", 3, 16), SLOWER])
def test_backbones_that_differ_in_kind(name, dims, side, tmp_path):
    model = scattered(mt.load_model(name, dims=dims), 0)
    run = write_run(tmp_path / "run", [model], asked_of(model, mt.Prepare(size=(side,) * dims)))
    batch = np.random.default_rng(0).random((5, 1, *(side,) * dims), dtype=np.float32)
    for form, path in exported(run, tmp_path, ("onnx", "torch")).items():
        assert np.abs(open_exported(path).answer(batch) - by_hand([model], batch)).max() < 1e-4, form


def test_one_fold_takes_its_own_threshold_along(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    point = {"rule": "youden", "by_fold": {"0": 0.2, "1": 0.6}}
    (run / "metrics.json").write_text(json.dumps({"threshold": point, "thresholds": {}}))
    for fold, limit in ((None, 0.4), (0, 0.2), (1, 0.6)):
        out = mt.export(run, tmp_path / f"weights-{fold}", fold=fold)
        assert open_exported(out).card.thresholds == {"yes": pytest.approx(limit)}


def test_normalisation_of_large_maps_keeps_its_digits(tmp_path):
    """Sparse volumes, which the runtime's own sums get wrong in the fifth digit."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="onnx is not installed")
    from medtransfer.export.graph import Graph, save_graph

    net = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.InstanceNorm3d(4, affine=True)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x = (torch.rand(2, 4, 48, 40, 44, generator=torch.Generator().manual_seed(0)) < 0.01).float() + 0.25
    card = Card("segmentation", ("a",), (4, 48, 40, 44), plan=Plan(patch=(44, 40, 48)).model_dump(mode="json"))
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    save_graph(program, card, tmp_path / "m.onnx")
    with torch.inference_mode():
        exact = net.double()(x.double()).numpy()
    assert np.abs(Graph(tmp_path / "m.onnx")(x.numpy()) - exact).max() < 3e-6 * np.abs(exact).max()


def monai(code, *arguments, cwd):
    """MONAI alone, in a clean process that cannot import this package."""
    for package in ("fire", "ignite", "jsonschema"):
        pytest.importorskip(package, reason=f"MONAI's bundle commands need {package}")
    code = "import sys; sys.modules['medtransfer'] = None; sys.argv[0] = 'monai.bundle'\n" + code
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


VERIFY = """
from monai.bundle import run, verify_metadata, verify_net_in_out
meta, config = "configs/metadata.json", "configs/inference.json"
verify_metadata(meta_file=meta, filepath=sys.argv[1])
verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu")
"""
RUN = 'run("inference", config_file=config, dataset_dir=sys.argv[2])'
COMMAND = "import runpy; runpy.run_module('monai.bundle', run_name='__main__')"


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SPECIFIED))
    return path


def test_monai_verifies_and_runs_a_bundle_of_pictures(trained, shipped, schema, tmp_path):
    _, files, expected = trained
    bundle = shipped["bundle"]
    monai(VERIFY, schema, cwd=bundle)
    data = tmp_path / "data"
    data.mkdir()
    for file in files:
        shutil.copy(file, data)
    told = ["run", "inference", "--config_file", "configs/inference.json", "--dataset_dir", data]
    monai(COMMAND, *told, "--output_dir", tmp_path / "eval", cwd=bundle)
    rows = list(csv.reader((tmp_path / "eval" / "predictions.csv").open()))
    assert [row[0].rsplit("/", 1)[-1] for row in rows] == [f.name for f in files]
    assert np.abs(np.array([[float(v) for v in row[1:]] for row in rows]) - expected).max() < 1e-5


@pytest.mark.slow
def test_monai_prepares_volumes_by_the_same_arithmetic(schema, tmp_path):
    prepare = mt.Prepare(size=(14, 18, 11), spacing_mm=(1.7, 1.5, 2.0), window_hu=[(-100, 100), (0, 400)])
    model = scattered(mt.load_model("random/compact3d", dims=3, in_channels=2), 0)
    run = write_run(tmp_path / "run", [model], asked_of(model, prepare))
    bundle = mt.export(run, tmp_path / "bundle", to="bundle")
    data = tmp_path / "data"
    data.mkdir()
    affine = np.array([[-1.0, 0, 0, 7], [0, 0, 1.5, -3], [0, 1.25, 0, 2], [0, 0, 0, 1]])  # turned, not cubic
    for i in range(2):
        array = np.random.default_rng(i).normal(100, 150, (20, 16, 12)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, affine), data / f"{i}.nii.gz")
    monai(VERIFY + RUN, schema, data, cwd=bundle)
    rows = list(csv.reader((bundle / "eval" / "predictions.csv").open()))
    ours = table(predict_files(bundle, sorted(data.iterdir()), progress=False))
    assert np.abs(np.array([[float(v) for v in row[1:]] for row in rows]) - ours).max() < 1e-4


@pytest.fixture
def balls(tmp_path):
    """A segmentation of two folds that answers with something, and a volume."""
    plan = Plan(patch=(16, 16, 12), width=4, mirror=("x",), scale=(0, 200))
    models = [scattered(load_segmenter("random/unet", classes=3, width=4), s) for s in (0, 1)]
    asked = {"task": "segmentation", "structures": ["large", "small"], "plan": plan.model_dump(mode="json")}
    image = np.random.default_rng(0).normal(100, 60, (24, 20, 18)).astype(np.float32)
    affine = np.array([[-1.0, 0, 0, 7], [0, 0, 1.5, -3], [0, 1, 0, 2], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(image, affine), tmp_path / "image.nii.gz")
    return write_run(tmp_path / "run", models, asked), models, plan, tmp_path / "image.nii.gz"


def test_segmentations_give_the_same_masks(balls, tmp_path):
    from medtransfer.segment.finish import apply_finish
    from medtransfer.segment.infer import segment_image

    run, models, plan, image = balls
    expected = segment_image(models, plan, mt.read(image), batch=2)
    expected = apply_finish(expected, {"1": "largest"}, 1.5)
    assert set(np.unique(expected)) == {0, 1, 2}
    for form, path in {"run": run, **exported(run, tmp_path)}.items():
        assert (open_exported(path).segment(mt.read(image)) != expected).mean() < 1e-3, form
    out = tmp_path / "masks"
    done = CliRunner().invoke(cli, ["predict", str(tmp_path / "model.onnx"), str(image), "--out", str(out)])
    assert done.exit_code == 0, done.output
    line = next(csv.DictReader(io.StringIO(done.output)))
    stored = read(out / line["mask"], labels=True).array.squeeze()
    assert (stored != expected).mean() < 1e-3
    assert float(line["ml:small"]) == pytest.approx((stored == 2).sum() * 1.5 / 1000, abs=1e-3)


@pytest.mark.slow
def test_monai_runs_a_segmentation(balls, schema, tmp_path):
    pytest.importorskip("skimage", reason="MONAI's connected components need scikit-image")
    run, _, _, image = balls
    bundle = mt.export(run, tmp_path / "bundle", to="bundle")
    assert "scikit-image" in json.loads((bundle / "configs" / "metadata.json").read_text())["required_packages_version"]
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(image, data)
    monai(VERIFY + RUN, schema, data, cwd=bundle)
    (written,) = (bundle / "eval").rglob("*.nii.gz")
    theirs = nibabel.load(written)
    assert np.allclose(theirs.affine, nibabel.load(image).affine)
    ours = open_exported(bundle).segment(mt.read(image))
    assert (read(written, labels=True).array.squeeze() != ours).mean() < 0.01


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a file ran')",))


def rewritten(path, out, change):
    """A copy of an archive, its entries changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = change(name.split("/", 1)[-1], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return out


def spoiled(kind):
    def change(name, content):
        if kind == "sample" and name == "data/sample_inputs/model.pt":
            return pickle.dumps(Bomb())
        if kind == "tensor" and name == "data/weights/model_weights_config.json":
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        if kind == "operator" and name == "models/model.json":
            return content.replace(b"torch.ops.aten.softmax.int", b"torch.serialization.load")
        if kind == "size" and name == "models/model.json":
            return content.replace(b"Symbol('", b"__import__('os').system('", 1)
        if kind == "guard" and name == "models/model.json":
            stored = json.loads(content)
            return json.dumps(stored | {"guards_code": ["__import__('os')"]}).encode()
        if kind == "card" and name == "extra/card.json":
            return None
        return content

    return change


@pytest.mark.parametrize("kind", ["sample", "tensor", "operator", "size", "guard", "card"])
def test_a_program_that_holds_more_than_arithmetic_is_refused(kind, shipped, tmp_path):
    bad = rewritten(shipped["torch"], tmp_path / "bad.pt2", spoiled(kind))
    with pytest.raises(RunError):
        open_exported(bad)


def test_a_bundle_is_read_without_its_configuration(trained, shipped, tmp_path):
    _, files, expected = trained
    bundle = shutil.copytree(shipped["bundle"], tmp_path / "bundle")
    (bundle / "configs" / "inference.json").write_text('{"imports": ["$exit(1)"]}')
    assert np.abs(table(predict_files(bundle, files, progress=False)) - expected).max() < 1e-5


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.pt"])
def test_what_is_no_export_is_named(name, tmp_path):
    if name == "model.onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(RunError):
        open_exported(tmp_path / name)


def test_a_graph_of_others_has_no_card(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["image"], ["probability"])
    graph = onnx.helper.make_graph([node], "g", [tensor("image", 1, [1])], [tensor("probability", 1, [1])])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, tmp_path / "other.onnx")
    with pytest.raises(RunError, match="no card"):
        open_exported(tmp_path / "other.onnx")


def test_unfinished_runs_and_strange_folds_are_refused(trained, tmp_path):
    run, files, _ = trained
    with pytest.raises(ConfigError, match="no fold 7"):
        mt.export(run, tmp_path / "a", fold=7)
    shutil.copytree(run, tmp_path / "run")
    state = json.loads((run / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(state | {"status": "running"}))
    with pytest.raises(RunError, match="not complete"):
        predict_files(tmp_path / "run", files, progress=False)
    with pytest.raises(RunError, match="not complete"):
        mt.export(tmp_path / "run", tmp_path / "b.pt2", to="torch")
