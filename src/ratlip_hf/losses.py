"""The terms of the objective (Eq. 8; docs/method.md, section 6) as functions of tensors, without networks or devices.

Each is computed in at least float32: the gradient penalty raises norms to the sixth power, which overflows float16.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .utils.tensors import at_least_float32

PENALTY_FORMS = ("summed", "concatenated")


def hinge_real(logits: torch.Tensor) -> torch.Tensor:
    """E[relu(1 - D)] over real matching pairs, logits [B] (Eq. 8, first term)."""
    return F.relu(1 - at_least_float32(logits)).mean()


def hinge_fake(logits: torch.Tensor) -> torch.Tensor:
    """E[relu(1 + D)] over generated or mismatched pairs, logits [B] (terms 2 and 3 of Eq. 8 without 1/2)."""
    return F.relu(1 + at_least_float32(logits)).mean()


def discriminator_hinge(real: torch.Tensor, fake: torch.Tensor, mismatch: torch.Tensor) -> torch.Tensor:
    """The three hinge terms of L_D with their weights 1, 1/2, 1/2 (Eq. 8), from logits [B] each."""
    return hinge_real(real) + 0.5 * (hinge_fake(fake) + hinge_fake(mismatch))


def input_gradients(logits: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Gradients of each sample's logit with respect to its inputs, themselves differentiable."""
    return torch.autograd.grad(at_least_float32(logits).sum(), list(inputs), create_graph=True)


def matching_aware_gradient_penalty(
    gradients: Sequence[torch.Tensor], weight: float = 2.0, power: float = 6.0, form: str = "summed"
) -> torch.Tensor:
    """MA-GP (Eq. 8, last term): weight * E[norm^power] over real matching pairs, k and p in Eq. 8.

    `gradients` of the logits are with respect to the image features and to the text, [B, ...] each. "summed" adds
    their norms (Eq. 8), "concatenated" takes the norm of both together (the released code). ValueError for another.
    """
    if form not in PENALTY_FORMS:
        raise ValueError(f"form must be one of {PENALTY_FORMS}, not {form!r}")
    norms = torch.stack([at_least_float32(gradient).flatten(1).norm(dim=1) for gradient in gradients], dim=1)
    norm = norms.sum(dim=1) if form == "summed" else norms.norm(dim=1)
    return weight * norm.pow(power).mean()


def generator_adversarial(logits: torch.Tensor) -> torch.Tensor:
    """-E[D(C(G(z, T)), T)], logits [B] (Eq. 8, first term of L_G)."""
    return -at_least_float32(logits).mean()


def clip_similarity(image_embeds: torch.Tensor, prompt_embeds: torch.Tensor) -> torch.Tensor:
    """E[cos(CLIP(x), T)] of embeddings [B, D]; L_G subtracts it times lambda = 4 (Eq. 8)."""
    return F.cosine_similarity(at_least_float32(image_embeds), at_least_float32(prompt_embeds), dim=1).mean()


def out_of_range(images: torch.Tensor) -> torch.Tensor:
    """E[relu(|x| - 1)] over pixels: keeps unclamped images near [-1, 1]. Not in the paper (weight 0 by default)."""
    return F.relu(at_least_float32(images).abs() - 1).mean()
