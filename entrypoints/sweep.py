r"""Job: a sweep; the file travels with the working directory, or is the name of a shipped one.

ray job submit --working-dir . -- \
    python entrypoints/sweep.py sweeps/error_bars.yaml --base voc12 --out /shared/sweeps/error_bars \
    --set data.root=/shared/VOC2012
"""

import sys

from ribray.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
