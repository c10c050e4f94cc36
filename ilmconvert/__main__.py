"""``python -m ilmconvert``."""

from ilmconvert.cli import main

if __name__ == "__main__":
    main(prog_name="ilmconvert")
