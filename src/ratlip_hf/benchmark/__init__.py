"""Speed and memory, measured: drawing, training steps, start-up, and a one-step diffusion model beside them.
Owns what is timed and how; the record that comes out and its pages are made by `ratlip benchmark` and `docs/`."""
