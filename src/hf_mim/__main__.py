"""`python -m hf_mim`: the same as `hf-mim`."""

import sys

from hf_mim_cli import main


if __name__ == "__main__":
    sys.exit(main())
