"""Every term of the objective against a closed form (Eq. 8)."""

import math

import pytest
import torch

from ratlip_hf import losses


def test_hinge_terms():
    logits = torch.tensor([-2.0, 0.0, 0.5, 3.0])
    assert losses.hinge_real(logits).item() == pytest.approx((3 + 1 + 0.5 + 0) / 4)
    assert losses.hinge_fake(logits).item() == pytest.approx((0 + 1 + 1.5 + 4) / 4)
    total = losses.discriminator_hinge(logits, logits, torch.zeros(4))
    assert total.item() == pytest.approx(4.5 / 4 + 0.5 * (6.5 / 4 + 1))


@pytest.mark.parametrize(("form", "norm"), [("summed", 5 + 13), ("concatenated", math.hypot(5, 13))])
def test_gradient_penalty_of_a_linear_critic(form, norm):
    """D = a.x + b.t has gradients a and b everywhere, |a| = 5 and |b| = 13."""
    x, t = torch.randn(4, 1, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    logits = (x[:, 0] * torch.tensor([3.0, 4.0])).sum(1) + (t * torch.tensor([5.0, 12.0])).sum(1)
    gradients = losses.input_gradients(logits, [x, t])
    penalty = losses.matching_aware_gradient_penalty(gradients, weight=2.0, power=3.0, form=form)
    assert penalty.item() == pytest.approx(2 * norm**3, rel=1e-5)


def test_gradient_penalty_is_per_sample_and_differentiable():
    weight = torch.tensor(2.0, requires_grad=True)
    x, t = torch.tensor([[1.0], [3.0]], requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    gradients = losses.input_gradients((weight * x.square() + 0 * t).flatten(), [x, t])
    penalty = losses.matching_aware_gradient_penalty(gradients, weight=1.0, power=2.0)
    assert penalty.item() == pytest.approx((4**2 + 12**2) / 2)  # gradients 2wx = 4 and 12
    penalty.backward()
    assert weight.grad.item() == pytest.approx(penalty.item())  # d/dw of (2wx)^2 is 2/w times itself, and w is 2


def test_gradient_penalty_of_half_precision_is_computed_in_float32():
    gradient = torch.full((2, 100), 8.0, dtype=torch.float16)  # norm 80, to the 6th far beyond float16
    penalty = losses.matching_aware_gradient_penalty([gradient, torch.zeros(2, 1, dtype=torch.float16)])
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(2 * 80.0**6, rel=1e-5)


def test_gradient_penalty_at_zero_gradient_has_no_nan():
    x, t = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    scale = torch.tensor(0.0, requires_grad=True)
    gradients = losses.input_gradients((scale * (x + t)).sum(1), [x, t])
    losses.matching_aware_gradient_penalty(gradients).backward()
    assert scale.grad.item() == 0


def test_unknown_penalty_form_is_refused():
    with pytest.raises(ValueError, match="summed"):
        losses.matching_aware_gradient_penalty([torch.zeros(1, 1)], form="both")


def test_generator_terms():
    assert losses.generator_adversarial(torch.tensor([1.0, 3.0])).item() == -2
    image, text = torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    assert losses.clip_similarity(image, text).item() == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert losses.out_of_range(torch.tensor([-3.0, -1.0, 0.0, 1.5])).item() == pytest.approx((2 + 0 + 0 + 0.5) / 4)
