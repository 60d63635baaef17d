"""Explanations as plain functions on tensors, and figures of them; docs/explain.md says how far to trust each."""

from .angles import degrees_between, edit_angles, random_swaps
from .insides import attention_gates, nearest, trace_states, word_importance, word_traces, words_left_out
from .saliency import attention_x_gradient, energy_inside, grad_cam, gradient_x_input, occlusion, pointing_hits
from .scores import contrast, discriminator_logit, similarity

__all__ = [
    "attention_gates",
    "attention_x_gradient",
    "contrast",
    "degrees_between",
    "discriminator_logit",
    "edit_angles",
    "energy_inside",
    "grad_cam",
    "gradient_x_input",
    "nearest",
    "occlusion",
    "pointing_hits",
    "random_swaps",
    "similarity",
    "trace_states",
    "word_importance",
    "word_traces",
    "words_left_out",
]
