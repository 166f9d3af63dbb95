"""``python -m ribray``: the command line."""

from ribray.cli import main

if __name__ == "__main__":
    main()
