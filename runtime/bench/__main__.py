"""`python -m runtime.bench`: run the engine over a dataset."""

import sys

from runtime.bench.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
