"""The two phases of the released training step on seeded networks, as the golden values were computed.
Written out here rather than taken from the trainer, which arranges the same terms differently."""

import torch
from recipe import seeded_discriminator, seeded_tensor

from ratlip_hf import losses
from ratlip_hf.clip import image_features_and_embeds


def seeded_pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Real features, fake features and texts for the discriminator phase, float64."""
    shape = (2, 3, 768, 7, 7)
    inputs = {"real": shape, "fake": shape, "text": (2, 512)}
    return tuple(
        seeded_tensor(f"d_phase/{name}", (torch.Size(size).numel(),)).double().reshape(size) * 10
        for name, size in inputs.items()
    )


def discriminator_phase(real_features, fake_features, text) -> dict[str, torch.Tensor]:
    """One discriminator phase of the released code on RATLIP's seeded networks, in the inputs' precision."""
    discriminator = seeded_discriminator("ratlip").to(text.dtype)
    real_features, text = real_features.clone().requires_grad_(), text.clone().requires_grad_()
    real = discriminator(real_features, text).logits
    mismatch = discriminator(real_features, text.detach().roll(-1, 0)).logits
    fake = discriminator(fake_features, text.detach()).logits
    gradients = losses.input_gradients(real, [real_features, text])
    penalty = losses.matching_aware_gradient_penalty(gradients, form="concatenated")
    loss = losses.discriminator_hinge(real, fake, mismatch) + penalty
    loss.backward()
    block = discriminator.extractor.blocks[0]
    return {
        "real_logits": real,
        "mismatch_logits": mismatch,
        "fake_logits": fake,
        "grad_norms": torch.cat([g.flatten(1) for g in gradients], dim=1).norm(dim=1),
        "ma_gp": penalty,
        "d_loss": loss,
        "d_grad_joint_conv_2": discriminator.referee.conv2.weight.grad,
        "d_grad_beta0": block.beta.grad,
        "d_grad_gamma0": block.gamma.grad,
    }


def generator_loss(generator, discriminator, image_encoder, noise, text) -> torch.Tensor:
    """The released code's generator loss: training mode, one batch, released preprocessing, lambda 4."""
    images = generator(noise, text, image_encoder).sample
    features, embeds = image_features_and_embeds(image_encoder, images, clip_input="released")
    logits = discriminator.requires_grad_(False)(features, text).logits
    return losses.generator_adversarial(logits) - 4 * losses.clip_similarity(embeds, text)
