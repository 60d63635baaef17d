"""Synthetic birds: a small procedural text-to-image world that needs no download, with a CLIP and judges of its own.
`world.py` plugs it into training and evaluation, `dataset.py` into `ratlip data prepare`, the latter without torch."""
