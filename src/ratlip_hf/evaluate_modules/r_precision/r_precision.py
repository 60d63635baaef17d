"""R-precision for `evaluate.load`: predictions are image embeddings, references text embeddings, [N, d] both.
A wrapper; the formula is in `ratlip_hf.metrics.prompts`."""

import evaluate

from ratlip_hf.metrics import r_precision, sample_mismatched
from ratlip_hf.metrics.evaluate_base import VECTOR, module_info


class RPrecision(evaluate.Metric):
    """Share of image embeddings (predictions) closer to their own caption (references) than to mismatched ones, which
    are sampled among the references; compute takes groups=, what each caption belongs to, count= and seed=."""

    def _info(self):
        return module_info(self.__doc__, {"predictions": VECTOR, "references": VECTOR})

    def _compute(self, predictions, references, groups=None, count=99, seed=0):
        groups = range(len(references)) if groups is None else groups
        candidates = sample_mismatched(groups, count, seed)
        result = r_precision(predictions, references, references, candidates)
        return {"r_precision": result.value, "num_pairs": len(predictions), "mismatched": count, "seed": seed}
