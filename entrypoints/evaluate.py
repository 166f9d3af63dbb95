r"""Job: predict and judge the held-out images; the run at --out has the segmentation network.

ray job submit --working-dir . -- \
    python entrypoints/evaluate.py voc12 --out /shared/runs/voc12 --set data.root=/shared/VOC2012
"""

from ribray.cli import job

if __name__ == "__main__":
    job("run", "--stages", "evaluate")
