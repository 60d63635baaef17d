"""Fréchet distance for `evaluate.load`: predictions and references are features [M, d] and [N, d].
A wrapper; the formula is in `ratlip_hf.metrics.sets`."""

from ratlip_hf.metrics import frechet_distance
from ratlip_hf.metrics.evaluate_base import SetComparison


class FID(SetComparison):
    """Fréchet distance between features of generated (predictions) and real images (references), in float64."""

    def score(self, real, fake):
        return {"fid": frechet_distance(real, fake), "num_real": len(real), "num_fake": len(fake)}
