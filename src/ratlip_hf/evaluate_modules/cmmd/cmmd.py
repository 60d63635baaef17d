"""CMMD for `evaluate.load`: predictions and references are CLIP image embeddings [M, d] and [N, d].
A wrapper; the formula is in `ratlip_hf.metrics.kernels`."""

from ratlip_hf.metrics import cmmd
from ratlip_hf.metrics.evaluate_base import SetComparison


class CMMD(SetComparison):
    """1000 times the squared maximum mean discrepancy of CLIP embeddings of generated (predictions) and real images
    (references); compute takes estimator="biased" (as published) or "unbiased"."""

    def score(self, real, fake, *, estimator):
        value = cmmd(real, fake, estimator=estimator)
        return {"cmmd": value, "estimator": estimator, "num_real": len(real), "num_fake": len(fake)}
