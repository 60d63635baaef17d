"""Training: configuration, data, the step, the loop. Knows the models; the models know nothing of it.
Run it with `accelerate launch -m ratlip_hf.training` or the top-level `train_ratlip.py`."""
