"""Kernel distance for `evaluate.load`: predictions and references are features [M, d] and [N, d].
A wrapper; the formula is in `ratlip_hf.metrics.kernels`."""

from ratlip_hf.metrics import kernel_distance_with_error
from ratlip_hf.metrics.evaluate_base import SetComparison


class KID(SetComparison):
    """Unbiased kernel distance over all pairs of features of generated (predictions) and real images (references),
    with its jackknife standard error."""

    def score(self, real, fake, degree=3):
        found = kernel_distance_with_error(real, fake, degree=degree)
        return {"kid": found.distance, "standard_error": found.spread, "num_real": len(real), "num_fake": len(fake)}
