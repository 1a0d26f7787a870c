"""Configs: sections are the calls they stand for, every typo is named with its line, nothing runs."""

import inspect
from pathlib import Path

import pytest

from medtransfer.config import Experiment, keywords, sections
from medtransfer.errors import ConfigError
from medtransfer.yamltext import parse

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))

GOOD = """\
cohort:   {csv: cohort.csv, root: data}
split:    {val: 0.15, test: 0.15, seed: 0}
prepare:  {spacing_mm: [1, 1, 1], size: [96, 96, 96], window_hu: [-1000, 400]}
augment:  {rotate_deg: 10, noise_std: 0.05}
model:    {weights: imagenet/resnet50, dims: 3, in_channels: 1, classes: 2}
recipe:   {epochs: 40, lr: 0.0003, backbone_lr_scale: 0.1, freeze_epochs: 5}
evaluate: {threshold: youden, bootstrap: 2000}
out: runs/nodule
"""


@pytest.mark.parametrize("key", ["csv", "dicom", "dicomweb", "medmnist"])
def test_every_section_is_the_signature_of_its_function(key):
    from medtransfer import Cohort, load_model, split_by_patient
    from medtransfer.judge import judge

    functions = {
        "cohort": getattr(Cohort, f"from_{key}"),
        "split": split_by_patient,
        "model": load_model,
        "evaluate": judge,
    }
    not_in_yaml = {"cohort", "run", "progress", "scan_store"}
    for name, function in functions.items():
        parameters = inspect.signature(function).parameters.values()
        wanted = {p.name: p.default for p in parameters if p.name not in not_in_yaml}
        fields = sections(key)[name].model_fields
        assert list(fields) == list(wanted)
        for field, default in wanted.items():
            assert fields[field].is_required() == (default is inspect.Parameter.empty)
            assert fields[field].is_required() or fields[field].default == default


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_of_the_repository_loads_and_survives_a_round_trip(path):
    experiment = Experiment.from_file(path)
    again = Experiment.from_text(experiment.resolved(private=True))
    assert again.resolved(private=True) == experiment.resolved(private=True)
    assert experiment.top.data


def test_the_house_example_means_what_it_says():
    e = Experiment.from_text(GOOD)
    assert e.settings["recipe"].lr == 3e-4
    assert e.settings["prepare"].window_hu == ((-1000.0, 400.0),)
    assert e.arguments("cohort")["csv"] == "cohort.csv"
    assert e.arguments("split") == {
        "val": 0.15,
        "test": 0.15,
        "folds": None,
        "repeats": 1,
        "seed": 0,
        "official": False,
    }


def test_augmentation_by_modality_stands_for_its_values():
    short = Experiment.from_text(GOOD.replace("{rotate_deg: 10, noise_std: 0.05}", "mr"))
    assert short.settings["augment"].bias_field > 0
    mixed = Experiment.from_text(GOOD.replace("{rotate_deg: 10,", "{modality: ct, rotate_deg: 3,"))
    assert mixed.settings["augment"].rotate_deg == 3
    assert mixed.settings["augment"].blur > 0
    with pytest.raises(ConfigError, match="line 4"):
        Experiment.from_text(GOOD.replace("{rotate_deg: 10, noise_std: 0.05}", "x-ray"))


def test_paths_do_not_stand_in_the_shared_config():
    e = Experiment.from_text(GOOD.replace("cohort.csv", "jane_doe/cohort.csv").replace("root: data", "root: ward7"))
    assert "jane" not in e.resolved()
    assert "ward7" not in e.resolved()
    assert "jane_doe" in e.resolved(private=True)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epochs: 40", "epoch: 40", "line 6.*recipe.epoch.*did you mean 'epochs'"),
        ("youden", "youdn", "line 7.*evaluate.threshold"),
        ("dims: 3", "dims: 4", "line 5.*model.dims.*found 4"),
        ("lr: 0.0003", "lr: fast", "line 6.*recipe.lr"),
        ("recipe:", "recipes:", "line 6.*'recipes'.*did you mean 'recipe'"),
        ("noise_std: 0.05", "noise_std: 0.05, noise_std: 1", "line 4.*duplicate"),
        ("cohort.csv,", "cohort.csv, imge: x,", "line 1.*did you mean 'image'"),
        ("csv: ", "cvs: ", "line 1.*cohort"),
        ("[96, 96, 96]", "[96, 96", "not valid YAML"),
        ("[-1000, 400]", "lungs", "line 3.*no window 'lungs'"),
        ("[-1000, 400]", "[400, -1000]", "line 3.*below"),
        ("out: runs/nodule\n", "", "'out' is missing"),
        ("val: 0.15", "vall: 0.15", "line 2.*did you mean 'val'"),
        ("weights: imagenet/resnet50, ", "", "line 5.*model.weights.*missing"),
        ("epochs: 40", "epochs: 0", "line 6.*recipe.epochs"),
        ("cohort:  ", "cohort: !!python/object/apply:os.system [x]\nx:  ", "config"),
        ("augment:  {rotate_deg: 10, noise_std: 0.05}", "augment: 3", "line 4.*mapping"),
        ("rotate_deg: 10", "rotate_deg: -1", "line 4.*augment.rotate_deg"),
        ("recipe:   {", "recipe:   {optimiser: sgd, ", "line 6.*recipe.optimiser"),
        ("in_channels", "in_chanels", "line 5.*did you mean 'in_channels'"),
    ],
)
def test_every_mistake_is_named_where_it_stands(old, new, says):
    assert old in GOOD
    with pytest.raises(ConfigError, match=rf"(?s){says}"):
        Experiment.from_text(GOOD.replace(old, new), name="config")


def test_numbers_follow_yaml_1_2():
    values, lines = parse("a: 1e-4\nb: 0o12\nc: no\nd:\n  e: 5\n", "x")
    assert values == {"a": 1e-4, "b": 10, "c": "no", "d": {"e": 5}}
    assert lines[("d", "e")] == "x line 5"


def test_an_alias_bomb_is_refused_before_it_expands():
    text = "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    text += "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(ConfigError, match="alias"):
        Experiment.from_text(text)


def test_changes_from_the_command_line():
    e = Experiment.from_text(GOOD, changes=["recipe.epochs=5", "augment.zoom=0.1", "model.until=layer3", "out=runs/b"])
    assert (e.settings["recipe"].epochs, e.settings["augment"].zoom, e.top.out) == (5, 0.1, "runs/b")
    assert e.arguments("model")["until"] == "layer3"
    for wrong, says in (
        ("recipe.epoch=5", "--set recipe.epoch.*did you mean"),
        ("recipe", "key=value"),
        ("x=1", "no key 'x'"),
    ):
        with pytest.raises(ConfigError, match=says):
            Experiment.from_text(GOOD, changes=[wrong])


def test_missing_unreadable_and_oversized_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Experiment.from_file(tmp_path / "no.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        Experiment.from_file(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="too large"):
        Experiment.from_file(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="mapping"):
        Experiment.from_file(tmp_path / "d.yaml")


def test_recipe_left_out_follows_the_size():
    assert (
        Experiment.from_text("\n".join(line for line in GOOD.splitlines() if "recipe" not in line)).settings["recipe"]
        is None
    )


def test_keywords_keep_required_ones_required():
    def f(a: int, *, b: str = "x") -> None: ...

    assert keywords(f)(a=1).model_dump() == {"a": 1, "b": "x"}


def test_addresses_of_databases_do_not_stand_in_the_shared_config():
    secret = "mysql://user:word@host/db"
    e = Experiment.from_text(GOOD + f"search: {{storage: '{secret}'}}\ntrack: {{mlflow: /home/doe/mlruns}}\n")
    assert secret not in e.resolved()
    assert "doe" not in e.resolved()
    assert Experiment.from_text(e.resolved(private=True)).settings["search"].storage == secret
