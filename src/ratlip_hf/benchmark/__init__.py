"""Speed and memory, measured: inference, training steps, start-up, and one-step diffusion for comparison."""
