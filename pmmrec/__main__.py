"""Start the command line: `python -m pmmrec` is `pmmrec`."""

from pmmrec.cli import app

if __name__ == "__main__":
    app(prog_name="pmmrec")
