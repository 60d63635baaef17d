"""How a step may be cut and computed: micro-batches, lazy penalty, clipping, half precision, augmentation, compiling.
That the step is Eq. 8 at all is in `test_objective`."""

import copy
import functools

import pytest
import torch

from ratlip_hf.training import step
from ratlip_hf.training.augmentation import AUGMENTATIONS, augment, augmentation_numbers
from ratlip_hf.training.optimization import Optimization
from ratlip_hf.training.run import wrap
from ratlip_hf.training.samples import StepInputs
from ratlip_hf.training.step import Networks, to_device, training_step
from ratlip_hf.utils.errors import UserError
from training_toys import keep_gradients, step_inputs, toy_dataset

# Micro-batches


def cut(inputs: StepInputs, parts: int) -> list[StepInputs]:
    return [inputs.map(lambda tensor, part=part: tensor.chunk(parts)[part]) for part in range(parts)]


def freeze_statistics(nets: Networks) -> None:
    for module in nets.generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_one_batch_when_statistics_are_frozen(nets, parts):
    freeze_statistics(nets)
    cut_nets = copy.deepcopy(nets)
    metrics = training_step(nets, [step_inputs()])
    cut_metrics = training_step(cut_nets, cut(step_inputs(), parts))
    for name, value in metrics.items():
        torch.testing.assert_close(cut_metrics[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for whole, other in ((nets.generator, cut_nets.generator), (nets.discriminator, cut_nets.discriminator)):
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_statistics_move_once_per_micro_batch_although_images_are_generated_twice(nets):
    norm = next(module for module in nets.generator.modules() if isinstance(module, torch.nn.BatchNorm2d))
    means, calls = [], []
    norm.register_forward_hook(lambda module, inputs, _: means.append(inputs[0].detach().mean(dim=(0, 2, 3))))
    nets.generator.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    expected = norm.running_mean.clone()
    training_step(nets, cut(step_inputs(), 2))
    assert calls == [False, False, True, True]
    torch.testing.assert_close(means[0], means[2])  # the same images both times
    for mean in means[2:]:
        expected = torch.lerp(expected, mean, 0.1)
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.num_batches_tracked == 2


# Penalty and clipping


def test_a_lazy_penalty_counts_for_the_steps_without_it(nets):
    nets.config.penalty_weight = 1000.0
    lazy, plain = copy.deepcopy(nets), copy.deepcopy(nets)
    for each in (nets, lazy, plain):
        keep_gradients(each)
    lazy.config.penalty_interval = 4
    assert "d_penalty" not in training_step(plain, [step_inputs()], penalise=False)
    metrics, lazy_metrics = (training_step(each, [step_inputs()]) for each in (nets, lazy))
    for name in ("d_penalty", "d_loss"):  # what is logged does not depend on the interval
        assert lazy_metrics[name] == metrics[name]
    for each, times in ((nets, 1), (lazy, 4)):
        gradients = [p.grad - q.grad for p, q in zip(*map(moving, (each, plain)), strict=True)]
        each.penalty_gradient = torch.cat([gradient.flatten() for gradient in gradients]) / times
    torch.testing.assert_close(lazy.penalty_gradient, nets.penalty_gradient, rtol=1e-4, atol=1e-5)
    assert nets.penalty_gradient.norm() > 0.1


def moving(nets: Networks) -> list[torch.nn.Parameter]:
    return [parameter for parameter in nets.discriminator.parameters() if parameter.grad is not None]


def test_gradients_are_clipped_to_the_norm_and_reported_before_it():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    moves = Optimization(torch.optim.SGD([weight], lr=1.0), max_grad_norm=1.0)
    moves.backward(weight.square().sum() / 2)
    assert moves.step().item() == pytest.approx(5.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 0.6, 4 - 0.8]))
    assert weight.grad is None


# Half precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_steps_stay_close_to_float32(nets, precision, tolerance):
    half = copy.deepcopy(nets)
    half.config.mixed_precision = precision
    if precision == "fp16":
        for name in ("generator_optimization", "discriminator_optimization"):
            setattr(half, name, Optimization(getattr(half, name).optimizer, half=True))
    metrics, half_metrics = (training_step(each, [step_inputs()]) for each in (nets, half))
    assert half_metrics["d_penalty"] == pytest.approx(metrics["d_penalty"].item(), rel=tolerance)
    names = ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm")
    for name in names:
        assert half_metrics[name].item() == pytest.approx(metrics[name].item(), rel=10 * tolerance), name
    # One of them may round to the same number.
    assert sum(half_metrics[name].item() == metrics[name].item() for name in names) <= 1


@pytest.mark.parametrize("penalise", [True, False])
def test_the_pass_under_the_penalty_is_the_only_one_in_float32(nets, penalise):
    nets.config.mixed_precision = "bf16"
    seen = []
    nets.discriminator.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    nets.discriminator.referee.conv2.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    training_step(nets, [step_inputs()], penalise)
    half, full = [torch.bfloat16, True], [torch.float32, False]
    assert seen == [*(full if penalise else half), *half, *half]


def test_the_penalty_is_the_same_under_every_loss_scale(nets):
    gradients = []
    for scale in (1.0, 2.0**16):
        each = copy.deepcopy(nets)
        each.discriminator_optimization.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        keep_gradients(each)
        gradients.append((training_step(each, [step_inputs()])["d_penalty"], [p.grad for p in moving(each)]))
    assert gradients[0][0] == gradients[1][0]
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_an_overflow_skips_one_network_and_leaves_the_others_scale():
    first, second = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    overflowing, sound = (Optimization(torch.optim.SGD([p], lr=1.0), half=True) for p in (first, second))
    overflowing.backward(first.sum() * 1e38)
    sound.backward(second.sum())
    norms = [overflowing.step(), sound.step()]
    assert not norms[0].isfinite() and norms[1] == 1
    assert (first.item(), second.item()) == (1.0, 0.0)
    assert (overflowing.scaler.get_scale(), sound.scaler.get_scale()) == (2.0**15, 2.0**16)
    twin = Optimization(torch.optim.SGD([first], lr=1.0), half=True)
    twin.load_state_dict(overflowing.state_dict())
    assert twin.scaler.get_scale() == 2.0**15


def test_gradients_that_overflow_at_every_scale_stop_the_run():
    weight = torch.nn.Parameter(torch.ones(1))
    moves = Optimization(torch.optim.SGD([weight], lr=1.0), half=True)
    with pytest.raises(UserError, match="at every loss scale"):
        for _ in range(20):
            moves.backward(weight.sum() * float("inf"))
            moves.step()


def test_an_optimization_is_configured_as_said(config):
    network = torch.nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    config.mixed_precision, config.max_grad_norm = "fp16", 0.5
    config.adam_beta1, config.adam_beta2, config.adam_epsilon = 0.1, 0.8, 1e-3
    moves = Optimization.adam(network, 0.2, config)
    (group,) = moves.optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.2, (0.1, 0.8), 1e-3)
    assert len(group["params"]) == 1 and group["params"][0] is network.weight
    assert moves.scaler.is_enabled() and moves.max_grad_norm == 0.5
    config.mixed_precision = "bf16"
    assert not Optimization.adam(network, 0.2, config).scaler.is_enabled()


@pytest.mark.parametrize("half", [False, True])
def test_a_resumed_optimizer_keeps_its_moments_and_takes_the_new_settings(half):
    """Also when float16 is turned on or off in between."""
    weight = torch.nn.Parameter(torch.ones(1))
    before = Optimization(torch.optim.Adam([weight], lr=0.1, betas=(0.0, 0.9)), half=not half)
    before.backward(weight.sum())
    before.step()
    after = Optimization(torch.optim.Adam([weight], lr=0.2, betas=(0.5, 0.99), eps=1e-6), half=half)
    after.load_state_dict(before.state_dict())
    (group,) = after.optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.2, (0.5, 0.99), 1e-6)
    assert after.optimizer.state[weight]["exp_avg_sq"].item() == pytest.approx(0.1)
    assert after.scaler.get_scale() == (2.0**16 if half else 1.0)


# Augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_differentiable_and_a_function_of_seed_and_index(name):
    images = (torch.rand(6, 3, 16, 16) * 2 - 1).requires_grad_()
    numbers = augmentation_numbers(3, range(10, 16), generated=True)
    changed = augment(images, [name], numbers)
    assert changed.shape == images.shape and not torch.equal(changed, images)
    torch.testing.assert_close(
        augment(images[2:3], [name], augmentation_numbers(3, [12], generated=True)), changed[2:3]
    )
    assert not torch.equal(augmentation_numbers(3, [12], generated=False), numbers[2:3])
    changed.sum().backward()
    assert images.grad.abs().sum(dim=(1, 2, 3)).min() > 0


def test_what_the_augmentations_do():
    images = torch.zeros(1, 3, 16, 16)
    images[0, :, 8, 8] = 1.0
    middle = torch.full((1, 7), 0.5)
    torch.testing.assert_close(augment(images, AUGMENTATIONS[:2], middle), images)
    shifted = augment(images, ["translation"], torch.tensor([[0.5] * 3 + [0.99, 0.0, 0.5, 0.5]]))
    assert shifted.nonzero().tolist() == [[0, channel, 8 - 2, 8 + 2] for channel in range(3)] or (
        shifted.nonzero().tolist() == [[0, channel, 8 + 2, 8 - 2] for channel in range(3)]
    )
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)  # a shift by one pixel, the second column mirrored at the border
    moved = augment(ramp, ["shift"], torch.tensor([[0.5] * 7 + [0.0, 0.5]]))
    assert moved[0, 0, 5].tolist() in ([1.0, *range(15)], [*range(1, 16), 14.0])
    assert augment(images + 1, ["cutout"], middle).eq(0).sum() == 3 * 8 * 8
    for end, kept in ((0.0, slice(4, None)), (0.999, slice(None, 12))):  # half of the hole reaches over the edge
        holed = augment(images + 1, ["cutout"], torch.full((1, 7), end))
        assert holed.eq(0).sum() == 3 * 4 * 4 and holed[..., kept, :].ne(0).all()
    assert augment(images, ["color"], torch.tensor([[1.0, 0.5, 0.5, 0, 0, 0, 0]])).min() == 0.5


def test_colours_move_about_grey_and_about_the_mean_of_the_whole_image():
    """Checked where the other two do nothing (0.5): saturation from 0 to 2 times, contrast from 0.5 to 1.5 times."""
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    image[:, 0] *= 0.2
    grey, mean = image.mean(dim=1, keepdim=True), image.mean()
    for saturation, contrast, expected in (
        (0.0, 0.5, grey.expand_as(image)),
        (1.0, 0.5, 2 * image - grey),
        (0.5, 0.0, (image + mean) / 2),
        (0.5, 1.0, 1.5 * image - mean / 2),
    ):
        numbers = torch.tensor([[0.5, saturation, contrast, 0, 0, 0, 0]])
        torch.testing.assert_close(augment(image, ["color"], numbers), expected)


def test_captions_are_encoded_where_no_embeddings_are_stored(config, small_clip):
    batch = toy_dataset(config).batch(range(3, 7))
    inputs = to_device(batch, small_clip, torch.device("cpu"))
    assert batch.prompt_embeds is None and inputs.indices == [3, 4, 5, 6]
    torch.testing.assert_close(inputs.prompt_embeds, small_clip.encode(batch.captions))
    torch.testing.assert_close(inputs.mismatched_embeds, small_clip.encode(batch.mismatched_captions))
    assert to_device(inputs, None, torch.device("cpu")).prompt_embeds is inputs.prompt_embeds


def test_the_discriminator_sees_augmented_images_with_numbers_of_their_own(nets, monkeypatch):
    """Real and generated ones; and in the other order, 1 - u, one kind's change reaches its own metrics only."""
    nets.config.augmentation = "color, cutout"

    def metrics(flipped: bool | None) -> dict[str, torch.Tensor]:
        def numbers(seed, indices, generated):
            assert (seed, list(indices)) == (nets.config.seed, [0, 1, 2, 3])
            uniform = augmentation_numbers(seed, indices, generated)
            return 1 - uniform if generated is flipped else uniform

        monkeypatch.setattr(step, "augmentation_numbers", numbers)
        return training_step(copy.deepcopy(nets), [step_inputs()])

    expected, names = metrics(None), ("d_real", "d_mismatch", "d_fake")
    for flipped, reached in ((False, ["d_real", "d_mismatch"]), (True, ["d_fake"])):
        other = metrics(flipped)
        assert [name for name in names if other[name] != expected[name]] == reached


# Memory and compilation


def test_checkpointing_gives_the_same_step_and_statistics(nets):
    twin = copy.deepcopy(nets)
    twin.config.gradient_checkpointing = True
    wrap(twin.generator, twin.discriminator, twin.image_encoder, twin.accelerator, twin.config)
    assert twin.generator.is_gradient_checkpointing and twin.discriminator.is_gradient_checkpointing
    for each in (nets, twin):
        training_step(each, [step_inputs()])
    for one, other in ((nets.generator, twin.generator), (nets.discriminator, twin.discriminator)):
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
def test_compiled_networks_give_the_same_step_and_save_plain_names(nets, monkeypatch):
    # Tracing and differentiation as for real, without the machine code.
    compiling = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compiling)
    twin = copy.deepcopy(nets)
    twin.config.torch_compile = True
    twin.generator, twin.discriminator = wrap(
        twin.generator, twin.discriminator, twin.image_encoder, twin.accelerator, twin.config
    )
    metrics, compiled = (training_step(each, [step_inputs()]) for each in (nets, twin))
    for name, value in metrics.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert twin.generator.state_dict().keys() == nets.generator.state_dict().keys()
