"""Attribute accuracy for `evaluate.load`: predictions are labels that a judge predicts, references those asked for.
A wrapper; the counting is in `ratlip_hf.metrics.prompts`."""

import evaluate

from ratlip_hf.metrics import attribute_accuracy
from ratlip_hf.metrics.evaluate_base import LABELS, module_info


class AttributeAccuracy(evaluate.Metric):
    """Share of labels [N, P] told from images (predictions) that the prompts asked for (references); compute takes
    parts=, the names of the P attributes, crown, belly and wing unless given."""

    def _info(self):
        return module_info(self.__doc__, {"predictions": LABELS, "references": LABELS})

    def _compute(self, predictions, references, parts=("crown", "belly", "wing")):
        result = attribute_accuracy(predictions, references, parts)
        return {"mean": result.mean, "all": result.all, **result.parts}
