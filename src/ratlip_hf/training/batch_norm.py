"""BatchNorm over the batch of all processes, on any backend.

torch's `SyncBatchNorm` cannot be used: it refuses tensors on the CPU, where several processes then could not train at
all. Names of parameters and buffers stay those of `nn.BatchNorm2d`.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..utils.tensors import at_least_float32


def synchronize_batch_norm(network: nn.Module) -> None:
    """Replace each BatchNorm of a network by one that computes its statistics over all processes; in place.

    Every process must then run the network equally often, with batches of one size.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SynchronizedBatchNorm2d.like(child))


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all processes' samples together."""

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> "SynchronizedBatchNorm2d":
        """One that shares the parameters and buffers of `norm`."""
        twin = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        twin._parameters, twin._buffers, twin.training = norm._parameters, norm._buffers, norm.training
        return twin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W] -> [B, C, H, W]."""
        if not self.training:
            return super().forward(x)
        normalized, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        return normalized


class _Normalize(torch.autograd.Function):
    """(x - mean) / std * weight + bias with mean and std over all processes; gradients include their share in both."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        # At least float32: half precision would round the sums of thousands of values.
        variance, mean = torch.var_mean(at_least_float32(x), dim=(0, 2, 3), unbiased=False)
        # Moments of the parts, put together without the cancellation of a sum of squares.
        parts = torch.stack([mean, variance])
        gathered = [torch.empty_like(parts) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, parts)
        means, variances = torch.stack(gathered, dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean).square()).mean(dim=0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        # docs/method.md, Eq. 6.4, in its letters: e = dL/dy, q = (v + eps)^(-1/2), n = q (x - mu), and
        #   dL/dx_i = w q (e_i - mean(e) - n_i mean(e n))
        # with means over all N values of the channel in all processes. sum(e n), the gradient of w, and sum(e), that
        # of b, stay those of this process: DDP averages them.
        x, w, mu, v = ctx.saved_tensors
        columns = (slice(None), None, None)
        q = (v + ctx.eps).rsqrt()
        n = (at_least_float32(x) - mu[columns]) * q[columns]
        e = at_least_float32(gradient)
        sums = torch.stack([e.sum(dim=(0, 2, 3)), (e * n).sum(dim=(0, 2, 3))])
        own_bias, own_weight = sums.clone()  # before the sums of the other processes are added
        dist.all_reduce(sums)
        mean_e, mean_en = sums / (x.numel() // x.shape[1] * dist.get_world_size())
        inner = e - mean_e[columns] - n * mean_en[columns]
        return (inner * (w * q)[columns]).to(x.dtype), own_weight, own_bias, None
