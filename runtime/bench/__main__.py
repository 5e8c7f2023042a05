"""`python -m runtime.bench PLAN.json`: run the engine on a plan."""

import sys

from runtime.bench.run import main

if __name__ == "__main__":
    sys.exit(main())
