"""What cluster/ ships is accepted by who reads it (Ray, KubeRay, Docker, bash), and agrees with the project."""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge_ray import config, placement
from bridge_ray.inference import local_ray

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
PAGES = sorted(CLUSTER.glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMAGE = re.compile(rf"registry\.example\.com/bridge-ray:{re.escape(PROJECT['version'])}-(cpu|gpu)")
CODE = "/opt/bridge-ray"  # where the image has this repository's code
PART = {"app.kubernetes.io/part-of": "bridge-ray"}
POOLS = {"generation", "training", "data"}

Document = dict[str, Any]


def fixed(name: str) -> str:
    """The version that pyproject.toml asks for, exactly."""
    found = [re.fullmatch(rf"{name}(?:\[.*\])?==(\S+)", requirement) for requirement in PROJECT["dependencies"]]
    return next(match[1] for match in found if match)


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def manifests(kind: str | None = None) -> list[Document]:
    every = [document for path in KUBERAY for document in documents(path)]
    return [document for document in every if kind in (None, document["kind"])]


def named(kind: str, name: str) -> Document:
    return next(document for document in manifests(kind) if document["metadata"]["name"] == name)


def clusters() -> list[Document]:
    """The spec of every Ray cluster, of a RayCluster or within a RayJob."""
    return [one["spec"] for one in manifests("RayCluster")] + [
        one["spec"]["rayClusterSpec"] for one in manifests("RayJob")
    ]


def groups(cluster: Document) -> list[Document]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def templates() -> list[Document]:
    """The template of every pod."""
    submitters = [job["spec"]["submitterPodTemplate"] for job in manifests("RayJob")]
    return [group["template"] for cluster in clusters() for group in groups(cluster)] + submitters


def container(template: Document) -> Document:
    (only,) = template["spec"]["containers"]
    return dict(only)


def entrypoint(job: Document) -> tuple[Path, str, list[str]]:
    """The script, the recipe and the options of a job."""
    python, script, recipe, *options = shlex.split(job["spec"]["entrypoint"])
    assert python == "python"
    return ROOT / Path(script).relative_to(CODE), recipe, options


def settings(recipe: str, options: list[str]) -> config.Config:
    """The config of a run's options, as the command line reads them."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    fields = {name.removeprefix("--"): value for name, value in pairs if name in ("--name", "--storage")}
    assert {name for name, _ in pairs} <= {"--name", "--storage", "--set"}
    return config.load(recipe, [value for name, value in pairs if name == "--set"], **fields)


# versions


def test_every_image_and_every_ray_version_is_the_projects() -> None:
    files = [*KUBERAY, *PAGES, CLUSTER / "aws.yaml", CLUSTER / "Dockerfile"]
    text = "\n".join(path.read_text() for path in files)
    images = re.findall(r"(?:registry\.example\.com/bridge-ray|\$IMAGE):([\w.-]+)", text)
    assert len(images) > 10
    assert set(images) == {f"{PROJECT['version']}-cpu", f"{PROJECT['version']}-gpu"}
    assert {cluster["rayVersion"] for cluster in clusters()} == {fixed("ray")}
    assert ":latest" not in text
    for template in templates():
        assert IMAGE.fullmatch(container(template)["image"])


# Kubernetes: the fields that KubeRay's and Kubernetes' schemas have, as far as these files use them. An unknown field
# would be dropped in silence, or refused by the server.
RAY_CLUSTER = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
AUTOSCALER = {"version", "idleTimeoutSeconds", "securityContext", "resources"}
HEAD = {"rayStartParams", "template"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "labels", "rayStartParams", "template"}
RAY_JOB = {
    "entrypoint",
    "submissionMode",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
    "submitterPodTemplate",
}
POD = {
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "restartPolicy",
    "securityContext",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
}
CONTAINER = {"name", "image", "securityContext", "ports", "env", "resources", "volumeMounts"}


def test_manifests_have_no_unknown_field() -> None:
    for cluster in clusters():
        assert set(cluster) <= RAY_CLUSTER
        assert set(cluster.get("autoscalerOptions", {})) <= AUTOSCALER
        assert set(cluster["headGroupSpec"]) <= HEAD
        for group in cluster["workerGroupSpecs"]:
            assert set(group) <= WORKERS
    for job in manifests("RayJob"):
        assert set(job["spec"]) <= RAY_JOB
    for template in templates():
        assert set(template) == {"metadata", "spec"}
        assert set(template["spec"]) <= POD
        assert set(container(template)) <= CONTAINER


def test_manifests_are_of_kinds_that_kubernetes_and_kuberay_have_and_in_one_namespace() -> None:
    versions = {
        "Namespace": "v1",
        "PersistentVolumeClaim": "v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "PodMonitor": "monitoring.coreos.com/v1",
        "RayCluster": "ray.io/v1",
        "RayJob": "ray.io/v1",
    }
    assert {document["kind"] for document in manifests()} == set(versions)
    for document in manifests():
        assert document["apiVersion"] == versions[document["kind"]]
        if document["kind"] not in ("Namespace", "PodMonitor"):
            assert document["metadata"]["namespace"] == "bridge-ray"
    # KubeRay derives the names of services and of a job's pods from these.
    names = [document["metadata"]["name"] for document in manifests() if document["apiVersion"] == "ray.io/v1"]
    assert len(names) == len(set(names))
    for name in names:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", name)


def test_kuberay_would_admit_the_clusters() -> None:
    """The rules of the operator's own validation that these files could break."""
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
        for group in groups(cluster):
            assert "labels" not in group["rayStartParams"], "the operator wants them as the group's own field"
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
            assert "restartPolicy" not in group["template"]["spec"], "autoscaler v2 sets it to Never"
        for group in cluster["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
        assert len(names) == len(set(names))


def test_the_autoscaler_is_version_2_wherever_a_group_can_grow() -> None:
    for cluster in clusters():
        grows = any(group["minReplicas"] < group["maxReplicas"] for group in cluster["workerGroupSpecs"])
        assert cluster.get("enableInTreeAutoscaling", False) == grows
        if grows:
            assert cluster["autoscalerOptions"]["version"] == "v2"
        environment = {one["name"] for group in groups(cluster) for one in container(group["template"]).get("env", [])}
        assert "RAY_enable_autoscaler_v2" not in environment, "the operator refuses both at once"


def test_ray_reads_the_clusters_as_they_are_meant() -> None:
    """Ray's own reading of a RayCluster, which its autoscaler goes by."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    read = _derive_autoscaling_config_from_ray_cr(deepcopy(named("RayCluster", "bridge-ray")))
    kinds = read["available_node_types"]
    assert set(kinds) == {"headgroup", *POOLS}
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    assert {name: kinds[name]["labels"] for name in POOLS} == {name: {"bridge-ray/pool": name} for name in POOLS}
    assert {name: kinds[name]["resources"].get("GPU", 0) for name in POOLS} == {
        "generation": 1,
        "training": 4,
        "data": 0,
    }


def test_a_job_runs_on_the_same_cluster_as_the_standing_one() -> None:
    assert named("RayJob", "cluster-7b")["spec"]["rayClusterSpec"] == named("RayCluster", "bridge-ray")["spec"]


def test_jobs_run_a_script_of_this_repository_with_a_config_that_is_valid() -> None:
    for job in manifests("RayJob"):
        script, recipe, options = entrypoint(job)
        assert script.is_file()
        run = settings(recipe, options)
        mounted = [
            one["mountPath"]
            for one in container(job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"])["volumeMounts"]
        ]
        paths = [run.storage, *(path for path in (run.corpus.path, run.teacher.key_file) if path)]
        for path in paths:
            assert any(Path(path).is_relative_to(mount) for mount in mounted), f"{path} is on no volume"


def test_a_job_can_be_tried_again() -> None:
    """Each try has a cluster of its own, so what is made must lie on a claim; and Ray takes a job's id once only."""
    for job in manifests("RayJob"):
        spec = job["spec"]
        assert "jobId" not in spec
        assert spec["backoffLimit"] > 0
        assert spec["shutdownAfterJobFinishes"]
        assert "runtimeEnvYAML" not in spec
        claims = {one["metadata"]["name"] for one in manifests("PersistentVolumeClaim")}
        for group in groups(spec["rayClusterSpec"]):
            volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
            assert volumes["storage"]["persistentVolumeClaim"]["claimName"] in claims


def test_a_claim_that_pods_of_several_machines_mount_can_be_shared() -> None:
    assert named("PersistentVolumeClaim", "bridge-ray-storage")["spec"]["accessModes"] == ["ReadWriteMany"]
    demo = named("RayJob", "bridge-ray-demo")["spec"]["rayClusterSpec"]
    (worker,) = demo["workerGroupSpecs"]
    (term,) = worker["template"]["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    wanted = term["labelSelector"]["matchLabels"].items()
    assert wanted <= demo["headGroupSpec"]["template"]["metadata"]["labels"].items()
    assert len([one for one in templates() if wanted <= one["metadata"]["labels"].items()]) == 1


def test_pods_are_admitted_by_the_restricted_standard() -> None:
    labels = named("Namespace", "bridge-ray")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in templates():
        pod = template["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == pod["runAsGroup"] == 1000
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert_unprivileged(container(template)["securityContext"])
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(template["spec"])
        for volume in template["spec"].get("volumes", []):
            assert set(volume) - {"name"} <= {"persistentVolumeClaim", "emptyDir", "secret"}
    for cluster in clusters():
        if "autoscalerOptions" in cluster:
            assert_unprivileged(cluster["autoscalerOptions"]["securityContext"])


def assert_unprivileged(context: Document) -> None:
    assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_only_heads_may_speak_to_kubernetes() -> None:
    heads = [cluster["headGroupSpec"]["template"] for cluster in clusters() if "enableInTreeAutoscaling" in cluster]
    for template in templates():
        assert template in heads or template["spec"]["automountServiceAccountToken"] is False


def test_pods_ask_for_what_they_may_use() -> None:
    """Ray takes a pod's limits for its resources; a GPU cannot be overcommitted at all."""
    every = [container(template)["resources"] for template in templates()]
    every += [cluster["autoscalerOptions"]["resources"] for cluster in clusters() if "autoscalerOptions" in cluster]
    for resources in every:
        assert resources["limits"] == resources["requests"]
        assert {"cpu", "memory"} <= set(resources["limits"])


def test_gpu_pods_have_the_gpu_image_and_others_have_not() -> None:
    for template in templates():
        found = IMAGE.fullmatch(container(template)["image"])
        assert found
        gpus = "nvidia.com/gpu" in container(template)["resources"]["limits"]
        assert (found[1] == "gpu") == gpus
        tolerated = [one["key"] for one in template["spec"].get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if gpus else [])


def test_every_mount_has_its_volume_and_every_volume_its_mount() -> None:
    for template in templates():
        mounts = [one["name"] for one in container(template).get("volumeMounts", [])]
        volumes = [one["name"] for one in template["spec"].get("volumes", [])]
        assert sorted(mounts) == sorted(volumes)
        assert len(set(mounts)) == len(mounts)


def test_nodes_have_shared_memory() -> None:
    """Kubernetes gives a pod 64 MB of it; Ray's object store and vLLM's processes live there."""
    for cluster in clusters():
        for group in groups(cluster):
            spec = group["template"]["spec"]
            (mount,) = [one for one in container(group["template"])["volumeMounts"] if one["mountPath"] == "/dev/shm"]
            (volume,) = [one for one in spec["volumes"] if one["name"] == mount["name"]]
            assert volume["emptyDir"]["medium"] == "Memory"
            limit = container(group["template"])["resources"]["limits"]["memory"]
            assert gibibytes(volume["emptyDir"]["sizeLimit"]) * 2 <= gibibytes(limit), "it counts as the pod's memory"


def gibibytes(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity.removesuffix("Gi"))


def test_keys_are_mounted_as_files_and_the_teachers_on_heads_only() -> None:
    mounted: dict[str, int] = {}
    for template in templates():
        for variable in container(template).get("env", []):
            assert set(variable) == {"name", "value"}, "a key in the environment is inherited by every process"
            assert not re.search(r"KEY|SECRET|PASSWORD|TOKEN(?!_PATH)", variable["name"])
        assert "envFrom" not in container(template)
        mounts = {one["name"]: one for one in container(template).get("volumeMounts", [])}
        for volume in template["spec"].get("volumes", []):
            if "secret" in volume:
                assert mounts[volume["name"]]["readOnly"] is True
                assert volume["secret"]["defaultMode"] == 0o440, "for user 1000 by its group, and nobody else"
                assert template["spec"]["securityContext"]["fsGroup"] == 1000
                mounted[volume["name"]] = mounted.get(volume["name"], 0) + 1
    # two clusters of one head and three groups of workers
    assert mounted == {"teacher": 2, "object-store": 8, "hub": 8}


def test_variables_that_name_a_file_name_one_in_a_mounted_secret() -> None:
    for template in templates():
        mounts = {one["mountPath"] for one in container(template).get("volumeMounts", [])}
        for variable in container(template).get("env", []):
            if variable["value"].startswith("/"):
                assert any(Path(variable["value"]).is_relative_to(mount) for mount in mounts), variable["name"]


@pytest.mark.parametrize(
    "path", [*KUBERAY, *PAGES, *sorted(CLUSTER.glob("*.*")), CLUSTER / "Dockerfile"], ids=lambda path: path.name
)
def test_no_file_holds_a_key(path: Path) -> None:
    found = re.search(
        r"\bsk-\w{8}|\bAKIA\w{8}|\bhf_\w{8}|\bghp_\w{8}|BEGIN [A-Z ]*PRIVATE KEY|stringData", path.read_text()
    )
    assert found is None


# the network


def test_the_network_policy_covers_every_pod_and_closes_both_ways() -> None:
    (policy,) = manifests("NetworkPolicy")
    assert policy["spec"]["podSelector"]["matchLabels"] == PART
    assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    for template in templates():
        assert PART.items() <= template["metadata"]["labels"].items()


def test_only_the_cluster_the_operator_and_prometheus_may_come_in() -> None:
    (policy,) = manifests("NetworkPolicy")
    within, operator, prometheus = policy["spec"]["ingress"]
    assert within == {"from": [{"podSelector": {"matchLabels": PART}}]}
    (peer,) = operator["from"]
    assert set(peer) == {"namespaceSelector", "podSelector"}, "both in one peer: in two, either would do"
    assert [one["port"] for one in operator["ports"]] == [8265]
    head = container(named("RayCluster", "bridge-ray")["spec"]["headGroupSpec"]["template"])
    ports = {one["name"]: one["containerPort"] for one in head["ports"]}
    assert ports["dashboard"] == 8265
    scraped = {ports[one["port"]] for one in named("PodMonitor", "bridge-ray")["spec"]["podMetricsEndpoints"]}
    assert {one["port"] for one in prometheus["ports"]} == scraped == {8080, 44217, 44227}


def test_pods_may_reach_names_the_api_and_https_and_nothing_else_outside() -> None:
    (policy,) = manifests("NetworkPolicy")
    open_ports = {
        (one["protocol"], one["port"]) for rule in policy["spec"]["egress"] if "to" not in rule for one in rule["ports"]
    }
    assert open_ports == {("TCP", 443), ("TCP", 6443)}, "80 would reach a cloud's metadata service"
    assert {"to": [{"podSelector": {"matchLabels": PART}}]} in policy["spec"]["egress"]
    names = [rule for rule in policy["spec"]["egress"] if {"protocol": "UDP", "port": 53} in rule.get("ports", [])]
    assert len(names) == 1


def test_the_monitor_finds_the_pods() -> None:
    spec = named("PodMonitor", "bridge-ray")["spec"]
    assert spec["selector"]["matchLabels"] == PART
    assert spec["namespaceSelector"]["matchNames"] == [named("Namespace", "bridge-ray")["metadata"]["name"]]


# AWS


@pytest.fixture(scope="module")
def aws() -> Document:
    """The launcher's file as Ray reads it: filled up with defaults and held against Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: Document = prepare_config(documents(CLUSTER / "aws.yaml")[0])
    validate_config(prepared)
    return prepared


def test_ray_refuses_a_launcher_file_with_a_mistake() -> None:
    """That the check above is one."""
    from jsonschema import ValidationError  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    wrong = documents(CLUSTER / "aws.yaml")[0]
    wrong["available_node_types"]["data"]["max_worker"] = 1
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(wrong))


def test_workers_on_aws_are_spot_and_carry_their_pool(aws: Document) -> None:
    kinds = aws["available_node_types"]
    assert set(kinds) == {"head", *POOLS}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"], "runs die with the head"
    assert kinds["head"]["resources"]["CPU"] == 0
    assert kinds["head"]["max_workers"] == 0
    for pool in POOLS:
        assert kinds[pool]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kinds[pool]["labels"] == {"bridge-ray/pool": pool}
    assert sum(kinds[pool]["max_workers"] for pool in POOLS) == aws["max_workers"]
    assert aws["provider"]["cache_stopped_nodes"] is False


def test_aws_pulls_our_images_and_installs_nothing(aws: Document) -> None:
    assert IMAGE.fullmatch(aws["docker"]["head_image"])[1] == "cpu"  # type: ignore[index]
    for pool in POOLS:
        kind = aws["available_node_types"][pool]
        image = kind.get("docker", {}).get("worker_image", aws["docker"]["worker_image"])
        assert IMAGE.fullmatch(image)[1] == ("gpu" if kind["resources"].get("GPU") else "cpu")  # type: ignore[index]
    assert aws["setup_commands"] == aws["head_setup_commands"] == aws["worker_setup_commands"] == []


def test_aws_nodes_ask_for_the_token_that_they_are_given(aws: Document) -> None:
    options = dict(option.removeprefix("-e ").split("=", 1) for option in aws["docker"]["run_options"])
    assert options["RAY_AUTH_MODE"] == "token"
    (remote,) = aws["file_mounts"]
    (user,) = re.findall(r"useradd .* --shell /bin/bash (\w+)", "\n".join(stages()["node"]))
    assert options["RAY_AUTH_TOKEN_PATH"] == remote.replace("~", f"/home/{user}") + "/auth_token"


def test_aws_starts_ray_with_options_that_ray_has_and_the_dashboard_on_loopback(aws: Document) -> None:
    head, worker = (starts(aws[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["head"] is True
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"


def starts(commands: list[str]) -> Document:
    """What the one `ray start` among shell commands asks for, read by Ray's own command line."""
    (command,) = [part for line in commands for part in line.split(";") if "ray start" in part]
    return ray_start(shlex.split(command)[2:])


def ray_start(options: list[str]) -> Document:
    from ray.scripts.scripts import start

    return dict(start.make_context("ray start", list(options)).params)


@pytest.mark.parametrize("where", ["aws", "kuberay"])
def test_the_clusters_can_place_the_run_that_is_shown_for_them(aws: Document, where: str) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    job = named("RayJob", "cluster-7b")
    _, recipe, options = entrypoint(job)
    run = settings(recipe, options)
    assert run.engine.labels == {"bridge-ray/pool": "generation"}
    assert run.training.labels == {"bridge-ray/pool": "training"}
    if where == "kuberay":
        aws = _derive_autoscaling_config_from_ray_cr(deepcopy(named("RayCluster", "bridge-ray")))
    nodes = placement.of_node_types(aws)
    assert nodes
    needs = placement.needs(run, [*placement.ENGINES, *placement.TRAINERS])
    assert len(needs) == 2
    assert [placement.lack(need, nodes, where) for need in needs] == [None, None]


# the image


def stages() -> dict[str, list[str]]:
    """Stage -> its instructions, continuation lines joined, comments left out."""
    found: dict[str, list[str]] = {}
    text = re.sub(r"\\\n\s*", " ", (CLUSTER / "Dockerfile").read_text())
    for line in text.splitlines():
        if start := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            found[start[1]] = []
        if found and line and not line.startswith("#"):
            list(found.values())[-1].append(line)
    return found


def instructions(name: str) -> list[str]:
    """The arguments of every such instruction of the image."""
    every = [line.partition(" ") for lines in stages().values() for line in lines]
    return [arguments.strip() for instruction, _, arguments in every if instruction == name]


def environment() -> dict[str, str]:
    pairs = [pair for line in instructions("ENV") for pair in shlex.split(line)]
    return dict(pair.split("=", 1) for pair in pairs)


def tool(name: str) -> str:
    """A linter that comes as a development dependency."""
    path = Path(sys.executable).parent / name
    assert path.is_file(), f"{name} is not installed: run make setup"
    return str(path)


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([tool("hadolint"), str(CLUSTER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_run_as_the_user_that_the_pods_name() -> None:
    for target in ("cpu", "gpu"):
        after = stages()[target]
        user = after.index("USER 1000:1000")
        assert not any(line.startswith(("RUN", "COPY", "ADD", "USER")) for line in after[user + 1 :])
    assert "useradd --uid 1000 --gid 1000" in " ".join(stages()["node"])


def test_images_are_made_of_pinned_things() -> None:
    bases = {line.split()[0] for line in instructions("FROM")} - set(stages())
    minor = PROJECT["requires-python"].removeprefix(">=")
    assert bases == {f"python:{minor}-slim-bookworm"}
    installs = [line for line in instructions("RUN") if "uv pip install" in line and "--no-deps" not in line]
    for extra, line in zip(("cpu", "gpu"), installs, strict=True):
        for option in (
            f"--constraint requirements/{extra}.txt",
            f"--override requirements/overrides-{extra}.txt",
            f"-r pyproject.toml --extra {extra}",
        ):
            assert option in line
        assert "boto3==" in (ROOT / "requirements" / f"{extra}.txt").read_text()
    assert any(re.search(r"pip install --no-cache-dir uv==[\d.]+ ", line) for line in instructions("RUN"))
    assert environment()["UV_COMPILE_BYTECODE"] == "1"
    assert environment()["CUDA_HOME"].startswith(f"/opt/venv/lib/python{minor}/")


def test_images_fetch_nothing_by_address_and_take_no_secret() -> None:
    assert instructions("ADD") == instructions("ARG") == []
    text = "\n".join(line for lines in stages().values() for line in lines)
    assert "://" not in text
    assert "--mount=type=secret" not in text
    assert not [name for name in environment() if re.search(r"KEY|SECRET|PASSWORD|TOKEN(?!_PATH)", name)]


def test_images_have_the_environment_of_a_driver() -> None:
    from bridge_ray.submit import STOP_WAIT_S

    assert local_ray.DRIVER_ENVIRONMENT.items() <= environment().items()
    assert environment()["RAY_AUTH_MODE"] == "token"
    assert environment()["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    ignored, *kept = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert ignored == "*"
    allowed = {line.removeprefix("!") for line in kept if line.startswith("!")}
    copied = {source for line in instructions("COPY") if not line.startswith("--from") for source in line.split()[:-1]}
    assert {source.partition("/")[0] for source in copied} == allowed
    for source in copied:
        assert (ROOT / source).exists()
    assert PROJECT["readme"] in copied, "the build backend reads it"


# local.sh

Local = Callable[..., subprocess.CompletedProcess[str]]

STAND_IN = """
import json, os, signal, sys
options = dict(one.removeprefix("--").split("=", 1) for one in sys.argv if one.startswith("--") and "=" in one)
names = [one for one in os.environ if one.startswith(("RAY_", "BRIDGE_"))]
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps(
        {"pid": os.getpid(), "options": sys.argv[1:], "env": {name: os.environ[name] for name in names}}
    ) + "\\n")
if "address" in options and os.environ.get("REFUSE"):
    sys.exit("no such token")
print("Ray runtime started.", flush=True)
signal.pause()
"""


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    """local.sh with a `ray` that says it has started, and waits."""
    script = tmp_path / "cluster" / "local.sh"
    script.parent.mkdir()
    script.write_text((CLUSTER / "local.sh").read_text())
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (tmp_path / "home").mkdir()
    ray = binaries / "ray"
    ray.write_text(f"#!{sys.executable}\n{STAND_IN}")
    ray.chmod(0o755)
    own = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "SEEN": str(tmp_path / "seen"),
        "RAY_AUTH_TOKEN": "of another cluster",
        "RAY_ADDRESS": "of another cluster",
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(script), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=own | more)

    yield run
    run("down")
    for left in seen(tmp_path):  # where local.sh did not do its work
        if alive(left["pid"]):
            os.kill(left["pid"], signal.SIGKILL)


def seen(tmp_path: Path) -> list[Document]:
    if not (tmp_path / "seen").exists():
        return []
    return [yaml.safe_load(line) for line in (tmp_path / "seen").read_text().splitlines()]


def pids(tmp_path: Path) -> dict[str, int]:
    files = (tmp_path / "storage" / "local-cluster").glob("*.pid")
    return {path.stem: int(path.read_text().split()[0]) for path in files}


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_local_starts_nodes_with_options_that_ray_has_on_loopback(local: Local, tmp_path: Path) -> None:
    done = local("up", "--workers", "2", "--port", "7001", "--dashboard-port", "7002")
    assert done.returncode == 0, done.stderr
    head, *workers = [ray_start(one["options"][1:]) for one in seen(tmp_path)]
    assert head["head"] is True
    assert (head["port"], head["dashboard_port"], head["dashboard_host"]) == (7001, 7002, "127.0.0.1")
    assert head["ray_client_server_port"] not in (7001, 7002)
    assert [one["address"] for one in workers] == ["127.0.0.1:7001"] * 2
    for one in (head, *workers):
        assert one["block"] is True
        assert one["node_ip_address"] == "127.0.0.1"
        assert one["num_cpus"] >= local_ray.LOGICAL_CPUS
    ranges = [range(one["min_worker_port"], one["max_worker_port"] + 1) for one in (head, *workers)]
    assert len({port for each in ranges for port in each}) == sum(len(each) for each in ranges), "disjoint"
    assert "bridge-ray submit demo" in done.stdout
    assert "--address http://127.0.0.1:7002" in done.stdout


def test_local_makes_a_token_that_nobody_else_can_read_and_keeps_one_that_is_there(
    local: Local, tmp_path: Path
) -> None:
    token = tmp_path / "home" / ".ray" / "auth_token"
    assert local("up", "--workers", "0").returncode == 0
    (head,) = seen(tmp_path)
    assert head["env"]["RAY_AUTH_MODE"] == "token"
    assert head["env"]["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert not {"RAY_AUTH_TOKEN", "RAY_ADDRESS"} & set(head["env"]), "of another cluster"
    first = token.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700, "made by umask: no moment in which others could read"
    token.chmod(0o644)  # as `ray get-auth-token --generate` leaves it
    local("down")
    local("up", "--workers", "0")
    assert token.read_text() == first
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_local_has_the_environment_of_a_driver(local: Local, tmp_path: Path) -> None:
    from bridge_ray.submit import STOP_WAIT_S

    local("up", "--workers", "0")
    (head,) = seen(tmp_path)
    for name in ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        assert head["env"][name] == local_ray.DRIVER_ENVIRONMENT[name]
    assert head["env"]["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S)


def test_local_ends_what_it_started_and_nothing_else(local: Local, tmp_path: Path) -> None:
    assert local("up", "--workers", "1").returncode == 0
    started = pids(tmp_path)
    assert set(started) == {"head", "worker-1"}
    assert all(alive(pid) for pid in started.values())
    other = subprocess.Popen(["sleep", "60"])
    try:
        # A pid that was another process's by now: the birth in the file is not its own.
        stale = tmp_path / "storage" / "local-cluster" / "worker-2.pid"
        stale.write_text(f"{other.pid}\nThu Jan 1 00:00:00 1970\n")
        done = local("down")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [f"ended {name}, pid {started[name]}" for name in ("worker-1", "head")]
        assert not any(alive(pid) for pid in started.values())
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert pids(tmp_path) == {}
    assert local("down").stdout == ""


def test_local_up_twice_is_refused_and_leaves_the_first_alone(local: Local, tmp_path: Path) -> None:
    local("up", "--workers", "0")
    first = pids(tmp_path)
    done = local("up", "--workers", "0")
    assert done.returncode == 2
    assert "already up" in done.stderr
    assert pids(tmp_path) == first
    assert alive(first["head"])


def test_local_takes_all_down_again_where_a_node_does_not_start(local: Local, tmp_path: Path) -> None:
    done = local("up", "--workers", "1", REFUSE="yes")
    assert done.returncode == 1
    assert "worker-1 did not start" in done.stderr
    assert "no such token" in done.stderr
    assert "ended head" in done.stderr
    assert pids(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage"),
        (("stop",), "usage"),
        (("up", "--workers", "two"), "--workers takes a number, not 'two'"),
        (("up", "--workers"), "--workers needs a value"),
        (("up", "--gpus", "1"), "unknown option --gpus"),
    ],
)
def test_local_says_what_is_wrong_with_a_command(
    local: Local, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = local(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert seen(tmp_path) == []


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run([tool("shellcheck"), str(CLUSTER / "local.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert os.access(CLUSTER / "local.sh", os.X_OK)


# the pages


def commands(path: Path) -> list[str]:
    """The lines of a page's code blocks, continuation lines joined and comments left out."""
    blocks = re.findall(r"^```\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    return [line.partition("  #")[0].strip() for line in text.splitlines()]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_name_files_that_exist(path: Path) -> None:
    text = path.read_text()
    mentioned = re.findall(r"\b(?:cluster|jobs|bridge_ray)/[\w./-]*\w", text)
    mentioned += [
        f"cluster/{name}" for name in re.findall(r"`((?:kuberay/)?[\w-]+\.(?:yaml|sh))`", text) if "/" in name
    ]
    assert mentioned
    for name in mentioned:
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link


def test_the_table_of_files_is_complete() -> None:
    listed = set(re.findall(r"^\| `([\w./-]+)` \|", (CLUSTER / "README.md").read_text(), flags=re.MULTILINE))
    there = {str(path.relative_to(CLUSTER)) for path in CLUSTER.rglob("*") if path.is_file() and path.suffix != ".md"}
    assert listed == there


def test_every_ray_start_on_a_page_has_options_that_ray_has_and_the_dashboard_on_loopback() -> None:
    found = [line for path in PAGES for line in commands(path) if line.startswith("ray start")]
    read = [ray_start(shlex.split(line)[2:]) for line in found]
    assert [one["head"] for one in read] == [True, False]
    assert read[0]["dashboard_host"] == "127.0.0.1"


def test_every_bridge_ray_on_a_page_has_options_that_it_has_and_a_valid_config() -> None:
    from typer.main import get_command

    from bridge_ray.cli import app

    command = get_command(app)
    checked = 0
    for path in PAGES:
        variables: dict[str, str] = {}
        for line in commands(path):
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[assigned[1]] = expand(assigned[2], variables)
            for part in re.findall(r"\bbridge-ray (?:submit|plan|doctor|recipes)\b[^'|]*", expand(line, variables)):
                name, *arguments = shlex.split(part)[1:]
                context = command.commands[name].make_context(name, arguments)  # type: ignore[attr-defined]
                given = context.params
                if given.get("recipe"):
                    config.load(given["recipe"], given["set_"] or (), storage=given["storage"])
                checked += 1
    assert checked >= 8


def expand(text: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), text)


def test_nothing_here_opens_the_dashboard_to_the_outside() -> None:
    files = [*KUBERAY, *PAGES, *CLUSTER.glob("*.*"), CLUSTER / "Dockerfile"]
    for path in files:
        assert "0.0.0.0" not in path.read_text(), path.name
        assert not re.search(r"kind: (?:Ingress|Service)|serviceType|LoadBalancer$", path.read_text(), re.MULTILINE)
