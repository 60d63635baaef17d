"""Faster images on CPUs: the networks of a pipeline rewritten for inference, one exact step at a time.

`session` is what the pipeline holds. `parts.ASSUMED` says what is assumed of `models`, which know nothing of this.
"""

from .session import FastSession

__all__ = ["FastSession"]
