"""The manifests in ops/kubernetes: what Kubernetes takes, shut in, and with names that the service knows."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands

from events import scrape

FOLDER = settings.BASE_DIR / "ops" / "kubernetes"
#: The Kubernetes release whose schemas they are held against.
RELEASE = "1.32"
#: Values and settings for other programs, which no kubectl gets to see.
NOT_MANIFESTS = {"kustomization.yaml", "prometheus-adapter.values.yaml", "prometheus.scrape.yaml"}


@cache
def written() -> list[dict[str, Any]]:
    """Every manifest as it stands in its file."""
    files = [file for file in sorted(FOLDER.glob("*.yaml")) if file.name not in NOT_MANIFESTS]
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [each for each in written() if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for each in written():
        if each["kind"] in ("Deployment", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in pods():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{name}/{container['name']}", container


def refused(manifests: list[dict[str, Any]]) -> list[str]:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    wrong = []
    for each in manifests:
        try:
            kubernetes_validate.validate(each, RELEASE, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{each['kind']} {each['metadata']['name']}: {error.message}")
    return wrong


def test_each_manifest_is_what_its_schema_says() -> None:
    assert refused(written()) == []


def test_a_manifest_with_a_wrong_word_would_be_noticed() -> None:
    wrong = json.loads(json.dumps(named("Deployment", "web")))
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    assert len(refused([wrong])) == 1


def test_kustomize_builds_them_all() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    example = {("Secret", "aggregator")}
    of_files = {(each["kind"], each["metadata"]["name"]) for each in written()} - example
    of_build = {(each["kind"], each["metadata"]["name"]) for each in built if each["kind"] != "ConfigMap"}
    assert of_build == of_files
    assert refused(built) == []


@pytest.mark.parametrize(("name", "container"), list(containers()), ids=[name for name, _ in containers()])
def test_a_container_can_write_nothing_and_become_nobody(name: str, container: dict[str, Any]) -> None:
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=[name for name, _ in pods()])
def test_a_pod_runs_as_the_user_of_the_image(name: str, pod: dict[str, Any]) -> None:
    security = pod["securityContext"]
    user = re.search(r"^USER (\d+)$", (settings.BASE_DIR / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == int(user[1])
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_every_variable_is_one_that_the_service_reads() -> None:
    config = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["configMapGenerator"][0]["literals"]
    given = {literal.partition("=")[0] for literal in config} | named("Secret", "aggregator")["stringData"].keys()
    given |= {entry["name"] for _, container in containers() for entry in container.get("env", [])}
    assert given <= set(settings.ENVIRONMENT.names)


def test_every_command_is_one_that_there_is() -> None:
    commands = {
        word
        for _, container in containers()
        for word in re.findall(r"manage\.py,? (\w+)", ", ".join(container["command"]).replace(", ", " "))
    }
    assert commands
    assert commands <= get_commands().keys()


def test_there_is_one_beat_and_never_two() -> None:
    beat = named("Deployment", "beat")["spec"]
    assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.django_db
def test_the_autoscaler_follows_a_metric_that_the_service_has() -> None:
    [metric] = named("HorizontalPodAutoscaler", "worker")["spec"]["metrics"]
    name = metric["external"]["metric"]["name"]
    [rule] = yaml.safe_load((FOLDER / "prometheus-adapter.values.yaml").read_text())["rules"]["external"]
    assert rule["name"]["as"] == name
    assert re.search(rf"^{name} ", scrape.scrape().decode(), re.MULTILINE)


def test_selectors_find_their_pods() -> None:
    for each in written():
        if each["kind"] in ("Service", "PodDisruptionBudget", "Deployment"):
            selector = each["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            found = [
                deployment
                for deployment in written()
                if deployment["kind"] == "Deployment"
                and wanted.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
            ]
            assert len(found) == 1, each["metadata"]["name"]
