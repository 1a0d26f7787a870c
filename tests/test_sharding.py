"""Weights in pieces over two processes: the numbers of one process, checkpoints of the same form, runs that go on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medtransfer import Recipe, fit, load_model, split_by_patient
from medtransfer.errors import ConfigError
from medtransfer.prepare import Prepare
from medtransfer.sharding import clip
from medtransfer.team import Team

HERE = Path(__file__).resolve().parent
PROGRAM = """
import json, os, shutil, signal, sys
from pathlib import Path
from small_cohorts import blobs
from medtransfer import Prepare, Recipe, fit, load_model, split_by_patient
from medtransfer.errors import Interrupted

def trained(out, devices=2, watch=None):
    cohort = blobs(42)
    recipe = Recipe(epochs=3, freeze_epochs=1, batch_size=3, accumulate=2, lr=3e-3, ema=0.5, average=2)
    model, prepare = load_model("random/resnet18", until="layer1"), Prepare(size=32, scale="range")
    return fit(model, cohort, split_by_patient(cohort), prepare, recipe, out=out, devices=devices, strategy="fsdp",
               accelerator="cpu", watch=watch, progress=False)

def stop(entry):
    if entry["epoch"] == 1:
        os.kill(os.getpid(), signal.SIGTERM)

if __name__ == "__main__":
    out = Path(sys.argv[1])
    trained(out / "two")
    try:
        trained(out / "cut", watch=stop)
    except Interrupted:
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from medtransfer.sharding import shard

        model = load_model("random/resnet18", until="layer1")
        shard(model, list(model.stages), Recipe(tune="all"), init_device_mesh("cpu", (2,)))
        held = {n: p.to_local().numel() if hasattr(p, "to_local") else p.numel() for n, p in model.named_parameters()}
        (out / f"held-{dist.get_rank()}.json").write_text(json.dumps(held))
        if not dist.get_rank():
            shutil.copytree(out / "cut", out / "other")
        dist.barrier()
        trained(out / "cut")
"""


def equal(a, b, within):
    a, b = load_file(a), load_file(b)
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=within, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.slow
def test_weights_in_pieces_end_where_one_process_ends(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    import program

    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, tmp_path / "program.py", tmp_path], check=True,
                   env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})  # fmt: skip

    program.trained(tmp_path / "one", devices=1)
    one, two, cut, other = (tmp_path / n / "fold-0" for n in ("one", "two", "cut", "other"))
    for a, b in zip(*(json.loads((f / "history.json").read_text()) for f in (one, two)), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-4)
        assert a["val_auroc"] == pytest.approx(b["val_auroc"], abs=1e-6)
    for name in ("model", "last"):
        # a step is 3e-4 at most and divided by the gradient's own size: where that is nothing but noise, so is the step
        equal(one / f"{name}.safetensors", two / f"{name}.safetensors", within=1e-3)

    # interrupted after the second epoch: it goes on to the same bytes, or without pieces to the same numbers
    for name in ("model.safetensors", "last.safetensors", "history.json"):
        assert (cut / name).read_bytes() == (two / name).read_bytes()
    assert not (other / "model.safetensors").is_file()
    program.trained(tmp_path / "other", devices=1)
    equal(other / "model.safetensors", two / "model.safetensors", within=1e-3)

    # each process holds its piece of the convolutions, and all of the frozen normalisation and of the head
    held = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    model = load_model("random/resnet18", until="layer1")
    for name, parameter in model.named_parameters():
        pieces = parameter.ndim > 2
        assert held[0][name] + held[1][name] == parameter.numel() * (1 if pieces else 2)
        assert held[0][name] == held[1][name]
    shutil.rmtree(tmp_path / "other")


def team(rank, size, *, sharded):
    found = Team(SimpleNamespace(global_rank=rank, world_size=size))
    found.mesh = "mesh" if sharded else None
    return found


def test_processes_that_share_weights_take_as_many_cases():
    cases = np.array([4, 7, 9, 2, 5], dtype=np.int64)
    plain = [team(r, 3, sharded=False).share(cases).tolist() for r in range(3)]
    assert plain == [[4, 2], [7, 5], [9]]
    even = [team(r, 3, sharded=True).share(cases).tolist() for r in range(3)]
    assert even == [[4, 2], [7, 5], [9, 4]]  # the last 4 counts for nothing
    assert [team(r, 3, sharded=True).own(5) for r in range(3)] == [2, 2, 1]
    alone = [team(r, 3, sharded=True) for r in range(3)]
    assert [t.share(cases[:1]).tolist() for t in alone] == [[4], [4], [4]]
    assert [t.own(1) for t in alone] == [1, 0, 0]


def test_plain_gradients_are_clipped_as_torch_does():
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    clip(parameters, 1.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.8]))
    assert parameters[2].grad is None


def test_what_does_not_go_with_pieces_is_refused(tmp_path):
    from small_cohorts import blobs

    cohort = blobs(40)
    fixed = (load_model("random/resnet18", until="layer1"), cohort, split_by_patient(cohort), Prepare(size=32))
    with pytest.raises(ConfigError, match="not scaled"):
        fit(*fixed, Recipe(epochs=1), out=tmp_path / "a", strategy="fsdp", precision="16-mixed")
    assert not (tmp_path / "a").exists()
