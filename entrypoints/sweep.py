r"""Job: a sweep, by the name of a shipped one or a file in the working directory.

ray job submit --working-dir . -- \
    python entrypoints/sweep.py error_bars --base voc12 --out /shared/sweeps/error_bars --set data.root=/shared/VOC2012
"""

from ribray.cli import job

if __name__ == "__main__":
    job("sweep")
