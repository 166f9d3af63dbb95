"""A cluster that ribray starts answers nobody who has not its token."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]

STRANGER = """
import sys
import ray

ray.init(address=sys.argv[1], log_to_driver=False)
print("is let in")
"""

OWNER = f"""
import os
import subprocess
import sys
import ray
from ribray.cluster.session import connect
from ribray.config import ClusterConfig

with connect(ClusterConfig(workers=1)) as session:
    assert session.is_local
    address = ray.get_runtime_context().gcs_address
    for given in ({{"RAY_AUTH_MODE": "disabled"}}, {{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}}, {{}}):
        tried = subprocess.run(
            [sys.executable, "-c", {STRANGER!r}, address],
            env={{**os.environ, **given}},
            capture_output=True,
            text=True,
            timeout=120,
        )
        print(*given.values(), "|", "is let in" in tried.stdout, "|", "uthentic" in tried.stderr)
"""


def test_a_stranger_cannot_connect_and_the_owner_can(tmp_path):
    home = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", OWNER],
        env={**home, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    without, wrong, own = (line.split("|") for line in done.stdout.splitlines())
    assert [part.strip() for part in without[1:]] == ["False", "True"]
    assert [part.strip() for part in wrong[1:]] == ["False", "True"]
    assert own[1].strip() == "True"
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text().strip()) >= 32
