"""Train a RATLIP generator: `accelerate launch train_ratlip.py --config synthetic_birds --output_dir DIR`.
The same as `accelerate launch -m ratlip_hf.training`, which an installed package has."""

import sys

from ratlip_hf.training.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
