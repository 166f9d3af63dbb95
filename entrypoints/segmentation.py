r"""Job: train the segmentation network; the run at --out has the pseudo masks.

ray job submit --working-dir . -- \
    python entrypoints/segmentation.py voc12 --out /shared/runs/voc12 --set data.root=/shared/VOC2012
"""

from ribray.cli import job

if __name__ == "__main__":
    job("run", "--stages", "segmentation")
