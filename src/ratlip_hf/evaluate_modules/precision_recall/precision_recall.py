"""Precision and recall for `evaluate.load`: predictions and references are features [M, d] and [N, d].
A wrapper; the formula is in `ratlip_hf.metrics.sets`."""

from ratlip_hf.metrics import precision_recall
from ratlip_hf.metrics.evaluate_base import SetComparison


class PrecisionRecall(SetComparison):
    """Improved precision and recall of features of generated (predictions) and real images (references)."""

    def score(self, real, fake, k=3):
        return {**precision_recall(real, fake, k)._asdict(), "k": k, "num_real": len(real), "num_fake": len(fake)}
