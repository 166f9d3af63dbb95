"""``python -m benchmarks gpu``: what needs neither Ray nor an installed ribray; the rest is ``ribray bench NAME``."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

if __name__ == "__main__":
    if sys.argv[1:2] != ["gpu"]:
        sys.exit("usage: python -m benchmarks gpu [OPTION...]; other benchmarks: ribray bench NAME")
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    from gpu import main

    sys.exit(main(sys.argv[2:]))
