"""The trainer: `accelerate launch -m ratlip_hf.training`, or `train_ratlip.py`. Read `loop` first, then `step`."""
