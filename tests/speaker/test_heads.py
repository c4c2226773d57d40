"""Classifiers with a margin against the formulas written out, and what imitation rewards."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from engine.errors import ConfigError
from speaker.heads import MarginClassifier, contrast_loss, equiangular, imitation_loss, relation_loss


def test_the_margin_is_added_to_the_angle_of_the_right_class_alone():
    torch.manual_seed(0)
    head, x, labels = MarginClassifier(6, 5, scale=10.0), torch.randn(7, 6), torch.arange(7) % 5
    angles = torch.acos(F.normalize(x) @ F.normalize(head.weight).T)
    for margin in (0.0, 0.2):
        logits = torch.cos(angles + margin * F.one_hot(labels, 5)) * 10
        assert float(head(x, labels, margin).detach()) == pytest.approx(
            float(F.cross_entropy(logits, labels).detach()), rel=1e-5
        )
    assert head(x, labels, 0.3) > head(x, labels, 0.1)
    assert head(x[:0], labels[:0], 0.2) == 0


def test_beyond_the_half_turn_the_loss_still_rises_with_the_angle():
    head = MarginClassifier(2, 2, scale=1.0)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    angle = torch.linspace(2.5, math.pi - 1e-3, 50)
    losses = [float(head(torch.stack([a.cos(), -a.sin()])[None], torch.tensor([0]), 0.5).detach()) for a in angle]
    right = [math.cos(a) for a in angle]
    assert all(a < b for a, b in zip(losses, losses[1:], strict=False)) and right == sorted(right, reverse=True)


def test_the_nearest_sub_centre_counts_and_top_k_raises_the_nearest_wrong_classes():
    torch.manual_seed(1)
    head, x = MarginClassifier(4, 3, sub_centres=2), torch.randn(5, 4)
    every = F.normalize(x) @ F.normalize(head.weight).T
    assert torch.allclose(head.cosines(x), torch.stack([every[:, 2 * c : 2 * c + 2].amax(1) for c in range(3)], 1))
    labels = torch.tensor([0, 1, 2, 0, 1])
    plain, penal = MarginClassifier(4, 3), MarginClassifier(4, 3, top_k=1, top_k_penalty=0.1)
    penal.load_state_dict(plain.state_dict())
    cosines = plain.cosines(x)
    wrong = cosines.masked_fill(F.one_hot(labels, 3).bool(), -9)
    cosines[torch.arange(5), wrong.argmax(1)] += 0.1
    expected = float(F.cross_entropy(32 * cosines, labels).detach())
    assert float(penal(x, labels, 0.0).detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num, dim", [(5, 8), (8, 8), (9, 8)])
def test_fixed_classes_are_equally_far_from_each_other(num, dim):
    frame = equiangular(num, dim)
    cosines = (frame @ frame.T)[~torch.eye(num, dtype=torch.bool)]
    assert torch.allclose(cosines, torch.full_like(cosines, -1 / (num - 1)), atol=1e-5)


def test_fixed_classes_are_not_learned_and_more_of_them_than_dimensions_are_spread():
    head = MarginClassifier(8, 20, fixed=True)
    assert not head.weight.requires_grad and torch.equal(equiangular(20, 8), equiangular(20, 8))
    assert torch.allclose(head.weight.norm(dim=1), torch.ones(20), atol=1e-5)
    assert (head.weight[:8] @ head.weight[:8].T - torch.eye(8)).abs().max() < 1e-5


def test_imitation_wants_the_direction_and_relation_the_angles_between():
    torch.manual_seed(2)
    targets = F.normalize(torch.randn(6, 8))
    turned = targets @ torch.linalg.qr(torch.randn(8, 8)).Q
    assert imitation_loss(3 * targets, targets) == pytest.approx(0, abs=1e-6) and imitation_loss(turned, targets) > 0.1
    assert relation_loss(turned * 5, targets) == pytest.approx(0, abs=1e-6)
    assert relation_loss(torch.randn(6, 8), targets) > 0.01
    assert relation_loss(targets[:1], targets[:1]) == 0


def test_contrast_counts_the_others_that_are_near_and_leaves_out_those_that_are_alike():
    torch.manual_seed(3)
    targets, others = F.normalize(torch.randn(4, 8)), F.normalize(torch.randn(30, 8))
    loss = functools.partial(contrast_loss, scale=20.0, alike=1.1)
    logits = 20 * torch.cat([torch.ones(4, 1), targets @ others.T], 1)
    wanted = -logits.log_softmax(1)[:, 0].mean()
    assert loss(7 * targets, targets, others) == pytest.approx(float(wanted), abs=1e-5)
    assert loss(targets, targets, others) < loss(torch.randn(4, 8), targets, others)
    # Equally far from its target, an embedding is worse off towards another voice than away from it.
    target, other = torch.eye(8)[:1], torch.eye(8)[1:2]
    assert loss(target + other, target, other) > loss(target - other, target, other)
    both = torch.cat([other, F.normalize(target + 0.1 * other)])
    assert contrast_loss(target, target, both, scale=20.0, alike=0.9) == loss(target, target, other)


@pytest.mark.parametrize(
    "options, message",
    [({"num_classes": 1}, "two speakers or more"), ({"num_classes": 3, "top_k": 3}, "below 3 classes"),
     ({"num_classes": 3, "sub_centres": 2, "fixed": True}, "one centre a class")],
)  # fmt: skip
def test_impossible_classifiers_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        MarginClassifier(4, **options)
