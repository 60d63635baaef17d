"""CLIP score for `evaluate.load`: predictions are image embeddings, references text embeddings, [N, d] both.
A wrapper; the formula is in `ratlip_hf.metrics.prompts`."""

import evaluate

from ratlip_hf.metrics import clip_score
from ratlip_hf.metrics.evaluate_base import VECTOR, module_info


class CLIPScore(evaluate.Metric):
    """Mean cosine of image embeddings (predictions) with their captions' embeddings (references), raw and times 100;
    compute takes encoder=, the name of the CLIP they come from."""

    def _info(self):
        return module_info(self.__doc__, {"predictions": VECTOR, "references": VECTOR})

    def _compute(self, predictions, references, *, encoder):
        result = clip_score(predictions, references, encoder=encoder)
        return {"cosine": result.cosine, "clip_score": result.score, "encoder": encoder, "num_pairs": len(predictions)}
