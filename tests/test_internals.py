"""What the package takes from the insides of Ray and torch: an upgrade that takes one away fails here, by its name."""

import ast
import contextlib
import importlib
import importlib.util
import re
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

NAMES = {
    "ray._private.services.canonicalize_bootstrap_address": "the address of a cluster of this machine",
    "torch._foreach_add": "the maps of a step to the sums, in one call",
    "torch._foreach_copy_": "a classifier's first weights again, in one call",
    "torch._foreach_mul": "copies of what a recording gives, in one call",
    "torch._foreach_zero_": "no gradients, in one call",
    "torch.cpu._is_amx_tile_supported": "whether a CPU is fast in bfloat16",
    "torch.cpu._is_avx512_bf16_supported": "whether a CPU is fast in bfloat16",
    "torch.ops.mkldnn._convolution_pointwise": "a convolution with a sum or a clamp in it",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "whether that convolution knows bfloat16",
}
"""Private names, and what they are for."""

PRIVATE = re.compile(r"(ray|torch)(\.\w+)*\._(?!_)\w+(\.\w+)*")

WORDS = {
    "RAY_AUTH_MODE": "ray._private.authentication.authentication_token_setup",
    "RAY_ENABLE_AUTO_CONNECT": "ray._private.auto_init_hook",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "ray._private.runtime_env.constants",
    "RAY_TMPDIR": "ray._common.utils",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "ray.train.v2._internal.constants",
    "RAY_USAGE_STATS_ENABLED": "ray._common.usage.usage_constants",
    "RAY_AIR_NEW_OUTPUT": "ray.tune.tune",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "ray.tune.constants",
    "job_submission_id": "ray.dashboard.modules.job.common",
    "timed out during startup": "ray._private.node",
}
"""Environment variables that Ray reads, what a job's has in it, and words of an error: each with a module of Ray's."""


def _private_names(file: Path) -> Iterator[str]:
    """Yield the private names of Ray and torch that a module uses."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        yield from (name for name in names if PRIVATE.fullmatch(name))


def test_the_list_is_complete():
    used = {name for file in (ROOT / "ribray").rglob("*.py") for name in _private_names(file)}
    assert used == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there(name):
    library, *attributes = name.split(".")
    place = importlib.import_module(library)
    told = f"{name} ({NAMES[name]}) is not in version {place.__version__}: find another way, or bound the version"
    for attribute in attributes:
        if not hasattr(place, attribute) and isinstance(place, types.ModuleType):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"{place.__name__}.{attribute}")
        assert hasattr(place, attribute), told
        place = getattr(place, attribute)


@pytest.mark.parametrize("name", WORDS)
def test_ray_still_has_the_word(name):
    found = importlib.util.find_spec(WORDS[name])
    told = f"Ray's module {WORDS[name]}, which named {name}, is gone: see whether Ray still has it"
    assert found is not None and found.origin is not None, told
    assert name in Path(found.origin).read_text(encoding="utf-8"), f"{WORDS[name]} no longer names {name}"


def test_the_head_of_a_cluster_answers_what_it_is_asked():
    from ray.core.generated import gcs_service_pb2

    from ribray.cluster.watch import ALIVE

    service, method = ALIVE.removeprefix("/").removeprefix("ray.rpc.").split("/")
    services = gcs_service_pb2.DESCRIPTOR.services_by_name
    assert method in services[service].methods_by_name, f"Ray's head has no {ALIVE}: ask it something else"


def test_rays_processes_are_called_as_they_are_looked_for():
    from ray._private import ray_constants

    from ribray.cluster.watch import PROCESSES

    known = {str(getattr(ray_constants, name)) for name in dir(ray_constants) if name.startswith("PROCESS_TYPE")}
    assert set(PROCESSES) <= known, f"Ray's processes are called {sorted(known)} now"
