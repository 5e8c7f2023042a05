"""`python -m runtime.bench PLAN.json`: run the engine on a plan."""

from runtime.bench.run import cli

if __name__ == "__main__":
    cli()
