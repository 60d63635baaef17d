"""Train a RATLIP generator: `accelerate launch train_ratlip.py --config synthetic_birds --output_dir DIR`.
A shell over `ratlip_hf.training`, which an installed package runs as `accelerate launch -m ratlip_hf.training`."""

import sys

from ratlip_hf.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
