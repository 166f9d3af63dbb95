r"""Job: make the pseudo masks; the run at --out has the maps and IRN.

ray job submit --working-dir . -- \
    python entrypoints/pseudo.py voc12 --out /shared/runs/voc12 --set data.root=/shared/VOC2012
"""

from ribray.cli import job

if __name__ == "__main__":
    job("run", "--stages", "pseudo")
