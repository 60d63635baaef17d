"""Drawing faster: the networks of a pipeline rewritten for inference on CPUs, one exact step at a time.
`session` is what the pipeline holds; `models` and `training` know nothing of this folder."""

from .session import FastSession

__all__ = ["FastSession"]
