r"""Job: predict and judge the held-out images; the run at --out has the segmentation network.

ray job submit --working-dir . -- \
    python entrypoints/evaluate.py voc12 --out /shared/runs/voc12 --set data.root=/shared/VOC2012
"""

import sys

from ribray.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:], "--stages", "evaluate"], supervised=True)
