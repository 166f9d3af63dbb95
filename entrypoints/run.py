r"""Job: a whole recipe.

ray job submit --working-dir . -- \
    python entrypoints/run.py voc12 --out /shared/runs/voc12 --set data.root=/shared/VOC2012
"""

import sys

from ribray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]], supervised=True)
