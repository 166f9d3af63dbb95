r"""Job: train IRN; the run at --out has the confident labels.

ray job submit --working-dir . -- \
    python entrypoints/irn.py voc12 --out /shared/runs/voc12 --set data.root=/shared/VOC2012
"""

from ribray.cli import job

if __name__ == "__main__":
    job("run", "--stages", "irn")
