"""Per-prompt diversity for `evaluate.load`: predictions are features [N, d], references the prompts as strings.
A wrapper; the formula is in `ratlip_hf.metrics.prompts`."""

import datasets
import evaluate

from ratlip_hf.metrics import prompt_diversity
from ratlip_hf.metrics.evaluate_base import VECTOR, module_info


class PromptDiversity(evaluate.Metric):
    """Mean distance between features (predictions) of images of one prompt (references), averaged over prompts;
    compute takes distance="euclidean" or "cosine"."""

    def _info(self):
        return module_info(self.__doc__, {"predictions": VECTOR, "references": datasets.Value("string")})

    def _compute(self, predictions, references, distance="euclidean"):
        result = prompt_diversity(predictions, [str(prompt) for prompt in references], distance)
        return {"prompt_diversity": result.value, "distance": distance, "num_prompts": len(result.per_prompt)}
