"""Heads by task: losses and probabilities against hand calculations, attention and bags."""

import math

import pytest
import torch

from medtransfer.errors import ConfigError
from medtransfer.heads import AttentionPool, Head, OrdinalLayer, start_from_prior, task_probabilities
from medtransfer.losses import losses


def test_classification_loss_by_hand():
    logits, target = torch.tensor([[0.0, math.log(3)]]), torch.tensor([1])
    assert losses(logits, target).item() == pytest.approx(-math.log(0.75), abs=1e-6)
    assert task_probabilities("classification")(logits)[0].tolist() == pytest.approx([0.25, 0.75])


def test_multilabel_leaves_out_what_is_not_known():
    logits = torch.tensor([[0.0, 5.0], [math.log(3), -5.0]])
    target = torch.tensor([[1.0, torch.nan], [0.0, torch.nan]])
    found = losses(logits, target, task="multilabel")
    assert found.tolist() == pytest.approx([math.log(2), math.log(4)], abs=1e-6)
    focal = losses(logits, target, task="multilabel", focal=2.0)
    assert focal.tolist() == pytest.approx([math.log(2) * 0.25, math.log(4) * 0.75**2], abs=1e-6)
    assert task_probabilities("multilabel")(logits)[1, 0].item() == pytest.approx(0.75)


def test_ordinal_thresholds_never_cross_and_chances_sum_to_one():
    torch.manual_seed(0)
    layer = OrdinalLayer(4, 5)
    with torch.no_grad():
        layer.gaps.normal_(0, 3)
    logits = layer(torch.randn(50, 4) * 5)
    chances = task_probabilities("ordinal")(logits)
    assert (layer.thresholds().diff() > 0).all()
    assert (chances >= 0).all()
    assert torch.allclose(chances.sum(1), torch.ones(50), atol=1e-6)


def test_ordinal_loss_by_hand():
    logits = torch.tensor([[math.log(3), 0.0]])  # above the first with .75, above the second with .5
    for target, wanted in ((0, -math.log(0.25) - math.log(0.5)), (1, -math.log(0.75) - math.log(0.5))):
        assert losses(logits, torch.tensor([target]), task="ordinal").item() == pytest.approx(wanted / 2, abs=1e-6)


def test_an_ordinal_head_learns_an_order():
    torch.manual_seed(0)
    x = torch.rand(300, 1) * 4
    target = x[:, 0].long()
    head = Head().build(1, 4, "ordinal")
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        losses(head(x), target, task="ordinal").mean().backward()
        optimizer.step()
    assert (task_probabilities("ordinal")(head(x)).argmax(1) == target).float().mean() > 0.9


def test_regression_loss_by_hand():
    logits = torch.tensor([[1.0], [5.0], [7.0]])
    loss = losses(logits, torch.tensor([1.5, 2.0, torch.nan]), task="regression")
    assert loss.tolist() == pytest.approx([0.5 * 0.25, 2.5, 0])
    halved = losses(logits, torch.tensor([1.5, 2.0, torch.nan]), task="regression", unit=torch.tensor([2.0]))
    assert halved.tolist() == pytest.approx([0.5 * 0.25**2, 1.0, 0])


@pytest.mark.parametrize(
    ("task", "frequency"),
    [("classification", (0.7, 0.2, 0.1)), ("multilabel", (0.5, 0.01, 0.9)), ("ordinal", (0.6, 0.3, 0.1)),
     ("regression", ((3.0, 1.0), (-1.0, 2.0), (2.0, 0.5)))],
)  # fmt: skip
def test_an_untrained_head_answers_with_the_prior(task, frequency):
    head = Head(hidden=(8,)).build(4, 3, task)
    with torch.no_grad():
        (head[-1].score if task == "ordinal" else head[-2] if task == "regression" else head[-1]).weight.zero_()
    start_from_prior(head, task, frequency)
    found = task_probabilities(task)(head(torch.rand(1, 4)))[0].tolist()
    assert found == pytest.approx([f[0] for f in frequency] if task == "regression" else frequency, abs=1e-3)


def test_attention_by_hand_ignores_absent_items_and_their_order():
    torch.manual_seed(0)
    pool = AttentionPool(3, 4)
    items = torch.randn(2, 3, 3)
    items[1, 2] = torch.nan
    assert torch.allclose(pool(items)[1], items[1, :2].mean(0), atol=1e-6)  # starts as the average
    torch.nn.init.normal_(pool.score.weight)
    weights = pool.weights(items)
    assert weights[1, 2] == 0
    assert torch.allclose(weights.sum(1), torch.ones(2))
    score = lambda x: pool.score(torch.tanh(pool.content(x)) * torch.sigmoid(pool.gate(x)))  # noqa: E731
    wanted = score(items[1, :2]).softmax(0)
    assert torch.allclose(weights[1, :2, None], wanted, atol=1e-6)
    assert torch.allclose(pool(items[:, [2, 0, 1]]), pool(items), atol=1e-6)
    pool(items).sum().backward()
    assert all(p.grad.isfinite().all() for p in pool.parameters())
    with pytest.raises(ConfigError, match="items"):
        pool(torch.ones(2, 3))


def test_attention_finds_the_image_that_matters():
    torch.manual_seed(0)
    target = torch.arange(80) % 2
    items = torch.randn(80, 6, 4)
    items[:, :, 0] = items[:, :, 0].abs() * -1
    items[torch.arange(80), torch.arange(80) % 6, 0] = torch.where(target == 1, 4.0, -1.0)
    head = Head(attention=8).build(4, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        losses(head(items), target).mean().backward()
        optimizer.step()
    weights = head[0].weights(items)[target == 1]
    assert (weights.argmax(1) == (torch.arange(80) % 6)[target == 1]).float().mean() > 0.9


REFERENCES = {
    "classification": lambda score: torch.bucketize(score[:, 0].contiguous(), torch.tensor([-0.5, 0.5])),
    "multilabel": lambda score: (score > 0).float().masked_fill(torch.rand_like(score) < 0.2, torch.nan),
    "ordinal": lambda score: torch.bucketize(score[:, 0].contiguous(), torch.tensor([-0.5, 0.5])),
    "regression": lambda score: score.masked_fill(torch.rand_like(score) < 0.2, torch.nan),
}


@pytest.mark.parametrize("attention", [0, 8])
@pytest.mark.parametrize("task", REFERENCES)
def test_dense_heads_learn_what_a_line_cannot_for_every_task(task, attention):
    """The reference is the product of two features: no linear head can tell it."""
    torch.manual_seed(0)
    x = torch.randn(600, 4)
    score = torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs() - 0.7, -x[:, 0] * x[:, 1]], 1)
    target = REFERENCES[task](score)
    items = x[:, None].expand(-1, 3, -1) if attention else x
    truth = target if target.ndim == 1 else score
    right = {}
    for name, hidden in (("line", ()), ("dense", (64, 32))):
        head = Head(hidden=hidden, dropout=0.05, batchnorm=True, attention=attention).build(4, 3, task)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(150):
            optimizer.zero_grad()
            losses(head(items[:400]), target[:400], task=task).mean().backward()
            optimizer.step()
        with torch.no_grad():
            found = task_probabilities(task)(head.eval()(items[400:]))
        assert found.shape == (200, 3)
        if task in ("classification", "ordinal"):
            right[name] = float((found.argmax(1) == truth[400:]).float().mean())
        elif task == "multilabel":
            right[name] = float(((found > 0.5) == (truth[400:] > 0)).float().mean())
        else:
            right[name] = 1 - float((found - truth[400:]).square().mean() / truth[400:].var())
    assert right["dense"] > 0.8 > right["line"] + 0.1
