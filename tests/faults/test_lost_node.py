"""A node of the cluster goes away in the middle of an image."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.cases import finished, require_same

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_lost_node_counts_against_no_image(settings, half_done, undisturbed, tmp_path):
    """An image has one try only, so that the loss would be in failures.jsonl if it counted."""
    earlier = finished(half_done)
    script = Path(__file__).with_name("lose_a_node.py")
    own = [*settings, "cluster.workers=2", "cluster.tries=1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(script), str(half_done), str(tmp_path / "marks"), *own],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "nodes left: 1" in done.stdout
    require_same(half_done, undisturbed, earlier)
