"""Train a RATLIP generator: `accelerate launch train_ratlip.py --config synthetic_birds --output_dir DIR`.
The same as `accelerate launch -m ratlip_hf.training`, which an installed package has."""

from ratlip_hf.training.__main__ import exit_with, main

if __name__ == "__main__":
    exit_with(main())
