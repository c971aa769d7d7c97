"""`python -m anybit`: the command line."""

from anybit.cli.main import run

if __name__ == "__main__":
    run()
