"""The example files of deploy/: read by Ray's own parsers, and their commands by ribray's."""

import re
import shlex
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from ribray.config import load_experiment
from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
SHARED = "/shared"

# Fields of KubeRay's ray.io/v1 types; those of pods are Kubernetes' own.
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy",
    "workerGroupSpecs",
}  # fmt: skip
AUTH = {"enableK8sTokenAuth", "mode", "secretName"}
AUTOSCALER = {
    "args", "command", "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources",
    "securityContext", "upscalingMode", "version", "volumeMounts",
}  # fmt: skip
GROUP = {"labels", "rayStartParams", "resources", "template"}
HEAD_GROUP = GROUP | {"enableIngress", "headService", "ingressOptions", "serviceType"}
WORKER_GROUP = GROUP | {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "priority", "replicas",
    "scaleStrategy", "suspend",
}  # fmt: skip


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    """The specification of the RayJob."""
    _, resource = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayJob")
    return resource["spec"]


@pytest.fixture(scope="module")
def machines() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())


def test_ray_derives_an_autoscaler_configuration_from_the_cluster_on_kubernetes(job):
    resource = {"metadata": {"name": "ribray", "namespace": "default"}, "spec": job["rayClusterSpec"]}
    nodes = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert nodes["gpu"]["resources"]["GPU"] == 1
    assert nodes["gpu"]["max_workers"] == 4


def test_every_key_of_the_job_on_kubernetes_is_one_of_kuberays(job):
    cluster = job["rayClusterSpec"]
    assert set(job) <= RAY_JOB
    assert set(cluster) <= RAY_CLUSTER
    assert set(cluster["authOptions"]) <= AUTH
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP
    assert all(set(group) <= WORKER_GROUP for group in cluster["workerGroupSpecs"])


def test_the_cluster_on_kubernetes_asks_for_the_token_and_shares_the_volume(job):
    cluster = job["rayClusterSpec"]
    claim, _ = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    assert cluster["authOptions"] == {"mode": "token"}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": SHARED}]


def test_ray_accepts_the_configuration_of_virtual_machines(machines):
    config = prepare_config(machines)
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "gpu"}
    assert config["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert config["setup_commands"] == []


def test_ray_start_knows_every_option_of_the_start_commands(job, machines):
    for command in (*machines["head_start_ray_commands"], *machines["worker_start_ray_commands"]):
        for words in (shlex.split(part) for part in command.split(";")):
            if words[:2] == ["ray", "start"]:
                start.make_context("start", words[2:])
    cluster = job["rayClusterSpec"]
    options = {option for parameter in start.params for option in parameter.opts}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert {f"--{name}" for name in group["rayStartParams"]} <= options


def test_virtual_machines_get_the_token_and_the_shared_file_system(machines):
    assert machines["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "--env RAY_AUTH_MODE=token" in machines["docker"]["run_options"]
    assert f"--volume {SHARED}:{SHARED}" in machines["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in " ".join(machines["head_start_ray_commands"])


@pytest.fixture(scope="module")
def commands(job) -> list[list[str]]:
    """The arguments of every `python .../entrypoints/X.py` that the files tell to run, in words."""
    in_comments = (DEPLOY / "ray-up.yaml").read_text().replace("\\\n#", "")
    found = [job["entrypoint"], *re.findall(r"python entrypoints/.*", in_comments)]
    assert len(found) == 2
    return [shlex.split(command)[1:] for command in found]


def test_the_commands_name_an_entrypoint_a_recipe_and_keys_that_exist(commands):
    for script, recipe, *options in commands:
        assert (ROOT / "entrypoints" / Path(script).name).is_file()
        pairs = list(zip(options[::2], options[1::2], strict=True))
        experiment = load_experiment(recipe, [value for name, value in pairs if name == "--set"])
        assert dict(pairs)["--out"].startswith(SHARED)
        assert experiment.data.root.startswith(SHARED)


def test_the_work_fits_the_gpus_of_the_cluster(commands, job, machines):
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    for (_, recipe, *options), most in zip(
        commands, (group["replicas"], machines["available_node_types"]["gpu"]["max_workers"]), strict=True
    ):
        experiment = load_experiment(recipe, [value for value in options if re.match(r"\w+\.\w+=", value)])
        assert experiment.cluster.workers * experiment.cluster.gpus_per_worker == most
        assert max(part.workers for part in (experiment.classifier, experiment.irn, experiment.segmentation)) <= most


def test_a_job_takes_the_checkout_along_but_neither_environment_nor_results(tmp_path):
    checkout, package = tmp_path / "checkout", tmp_path / "package.zip"
    kept, left = (
        ["ribray/runs/run.py", "entrypoints/run.py"],
        ["runs/a/maps/b.npz", ".venv/bin/python", "wandb/run.wandb"],
    )
    for name in (*kept, *left):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).touch()
    shutil.copy(ROOT / ".gitignore", checkout)
    create_package(str(checkout), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    assert files == {*kept, ".gitignore"}


def test_one_version_of_ray_and_one_image_everywhere(job, machines):
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert job["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    groups = (job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"])
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert images == {machines["docker"]["image"]}
    assert images.pop() in (DEPLOY / "Dockerfile").read_text()


def test_the_image_copies_what_there_is():
    lines = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text()).splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert copies
    assert all((ROOT / source).exists() for sources in copies for source in sources)
