"""What the modules in `evaluate_modules` share: how features travel through the tables of the `evaluate` library.
Needs that library (extra `eval`); only those modules import this one."""

import abc

import datasets
import evaluate
import torch

from .common import as_tensor

VECTOR = datasets.List(datasets.Value("float64"))
LABELS = datasets.List(datasets.Value("int64"))


def module_info(description: str | None, features: dict) -> evaluate.MetricInfo:
    """The description that evaluate keeps; `features` names the columns and their types."""
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=description, features=datasets.Features(features)
    )


# Abstract, or `evaluate.load` would take it for the metric of every module that imports it.
class SetComparison(evaluate.Metric, abc.ABC):
    """A metric of two sets of features that may differ in size.

    `predictions` are features of generated images [M, d], `references` those of real ones [N, d], added together or
    apart. evaluate's tables want columns of equal length, so that both sets go into one column, with their origin.
    Subclasses have a docstring and `score(real, fake, **options)`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return module_info(type(self).__doc__, {"vector": VECTOR, "is_real": datasets.Value("bool")})

    # evaluate appends the inputs' description to the docstrings of these three, which must therefore exist.
    def add_batch(self, *, predictions=None, references=None) -> None:
        """Add features of generated images, of real ones, or of both."""
        for vectors, is_real in ((predictions, False), (references, True)):
            if vectors is not None and len(vectors):
                super().add_batch(vector=as_tensor(vectors).tolist(), is_real=[is_real] * len(vectors))

    def add(self, *, prediction=None, reference=None) -> None:
        """Add the features of one generated image, of one real one, or of both."""
        self.add_batch(
            predictions=None if prediction is None else [prediction],
            references=None if reference is None else [reference],
        )

    def compute(self, *, predictions=None, references=None, **options) -> dict | None:
        """Compute the metric of all that was added and of what is given; options are those of the pure function."""
        self.add_batch(predictions=predictions, references=references)
        return super().compute(**options)

    def _compute(self, vector, is_real, **options) -> dict:
        vectors, is_real = as_tensor(vector), as_tensor(is_real)
        return self.score(vectors[is_real], vectors[~is_real], **options)

    @abc.abstractmethod
    def score(self, real: torch.Tensor, fake: torch.Tensor, **options) -> dict:
        """The metric of features [N, d] and [M, d] in float64."""
