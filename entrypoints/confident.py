r"""Job: cut the maps into confident labels; the run at --out has the maps.

ray job submit --working-dir . -- \
    python entrypoints/confident.py voc12 --out /shared/runs/voc12 --set data.root=/shared/VOC2012
"""

from ribray.cli import job

if __name__ == "__main__":
    job("run", "--stages", "confident")
