"""Scores of generated pictures as pure functions of features: no network and no picture appears here.
What the features are and how many pictures there were is the caller's protocol, to be recorded with the score."""

from .kernel_distance import kernel_distance

__all__ = ["kernel_distance"]
