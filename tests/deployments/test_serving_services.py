"""vLLM as compose and Kubernetes start it, as far as it shows without containers."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.serving.vllm_command import ENVIRONMENT, command_line

CHECKOUT = Path(__file__).parents[2]
PRODUCTION = CHECKOUT / "deployments" / "production"
SERVING = PRODUCTION / "serving"
START = SERVING / "start.sh"
SEEN = {"/data/home/.cache", "/data/home/served"}
"""What vLLM sees of the data: bases, and published adapters."""


def services(name: str = "compose.yaml") -> dict[str, Any]:
    """Read a compose file's services."""
    read: dict[str, Any] = yaml.safe_load((PRODUCTION / name).read_text())["services"]
    return read


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """Read the manifests of Kubernetes, by kind and name."""
    read = yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in read}


def container(deployment: str) -> dict[str, Any]:
    """Return the one container of a Deployment."""
    spec = manifests()["Deployment", deployment]["spec"]["template"]["spec"]
    (one,) = spec["containers"]
    assert isinstance(one, dict)
    return one


def environment(deployment: str) -> dict[str, Any]:
    """Return the variables of a Deployment's container: a value, or where a secret has it."""
    return {
        one["name"]: one.get("value") or one["valueFrom"]["secretKeyRef"]
        for one in container(deployment)["env"]
    }


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Return a service's volumes by their path, without files; `:ro` stays behind the volume."""
    split = [one.split(":") for one in service["volumes"] if not one.startswith(".")]
    return {path: ":".join([volume, *mode]) for volume, path, *mode in split}


def test_vllm_sees_bases_and_adapters_by_the_workers_paths_and_changes_none() -> None:
    """`publish` names a folder of the worker's, and nothing else of the data is in reach."""
    worker, vllm = mounts(services()["worker"]), mounts(services()["vllm"])
    assert set(vllm) == SEEN
    assert vllm == {path: f"{worker[path]}:ro" for path in SEEN}
    assert services()["worker"]["environment"]["ADAPTERFLOW_HOME"] == "/data/home"

    seen = [one for one in container("adapterflow-vllm")["volumeMounts"] if one["name"] == "data"]
    assert {one["mountPath"] for one in seen} == SEEN
    # The jobs have the claim in /data.
    assert all(one["mountPath"] == f"/data/{one['subPath']}" and one["readOnly"] for one in seen)
    # Those who write there are not root: the folders' owner comes from the image.
    assert f"mkdir -p {' '.join(sorted(SEEN))}" in (PRODUCTION / "Dockerfile").read_text()


def test_vllm_finds_the_base_where_the_trainings_put_it() -> None:
    """It is offline, so the cache of bases has to be the worker's and the jobs'."""
    template = json.loads((PRODUCTION / "kubernetes-job-template.json").read_text())
    job = template["variables"]["properties"]["env"]["default"]
    worker, vllm = (services()[one]["environment"] for one in ("worker", "vllm"))
    pod = environment("adapterflow-vllm")
    assert worker["HF_HOME"] == vllm["HF_HOME"] == job["HF_HOME"] == pod["HF_HOME"]
    assert Path(vllm["HF_HOME"]).parent.as_posix() in SEEN
    assert vllm["HF_HUB_OFFLINE"] == pod["HF_HUB_OFFLINE"] == "1"


def test_vllm_is_reached_by_the_worker_and_the_proxy_only() -> None:
    """It is published nowhere, and its network leads nowhere else."""
    compose = yaml.safe_load((PRODUCTION / "compose.yaml").read_text())
    vllm = compose["services"]["vllm"]
    assert "ports" not in vllm
    assert vllm["networks"] == ["serving"]
    assert compose["networks"]["serving"] == {"internal": True}
    inside = {name for name, one in services().items() if "serving" in one.get("networks", [])}
    assert inside == {"worker", "vllm", "serving"}

    policy = manifests()["NetworkPolicy", "adapterflow-vllm"]["spec"]
    pods = manifests()["Deployment", "adapterflow-vllm"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == pods
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    allowed = [one["podSelector"]["matchLabels"] for one in rule["from"]]
    proxies = manifests()["Deployment", "adapterflow-serving"]["spec"]["selector"]["matchLabels"]
    template = json.loads((PRODUCTION / "kubernetes-job-template.json").read_text())
    job = template["job_configuration"]["job_manifest"]["spec"]["template"]["metadata"]["labels"]
    assert allowed == [proxies, job]
    # Services are of the cluster only.
    kinds = [one["spec"].get("type") for (kind, _), one in manifests().items() if kind == "Service"]
    assert kinds == [None, None]


def test_clients_have_a_token_of_their_own() -> None:
    """The administrator's is the worker's and the proxy's, and no file has either of them."""
    found = {name: one.get("environment", {}) for name, one in services().items()}
    administrators = {
        name: variable
        for name, one in found.items()
        for variable, value in one.items()
        if "VLLM_API_KEY" in str(value)
    }
    assert administrators == {
        "worker": "ADAPTERFLOW_SERVING_TOKEN",
        "vllm": "VLLM_API_KEY",
        "serving": "VLLM_API_KEY",
    }
    assert "${SERVING_CLIENT_TOKEN:-}" in found["serving"].values()
    pod, proxy = environment("adapterflow-vllm"), environment("adapterflow-serving")
    jobs = {"name": "adapterflow", "key": "ADAPTERFLOW_SERVING_TOKEN"}
    assert pod["VLLM_API_KEY"] == proxy["VLLM_API_KEY"] == jobs
    assert proxy["SERVING_CLIENT_TOKEN"]["name"] != jobs["name"], "jobs get all of that secret"


def test_each_variable_of_the_proxys_configuration_is_set() -> None:
    """The image leaves a variable that is not set as it is, and nginx refuses it."""
    needed = set(re.findall(r"\$\{(\w+)\}", (SERVING / "proxy.conf.template").read_text()))
    looked_up = {"NGINX_LOCAL_RESOLVERS"}
    for given in (services()["serving"]["environment"], environment("adapterflow-serving")):
        assert given["NGINX_ENTRYPOINT_LOCAL_RESOLVERS"] == "1"
        assert needed - looked_up == set(given) - {"NGINX_ENTRYPOINT_LOCAL_RESOLVERS"}


def test_the_images_are_of_the_version_that_is_tested() -> None:
    """The tag is the version that `make vllm` installs, and nothing is named `latest`."""
    (version,) = re.findall(r"^VLLM := (\S+)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    cpu, gpu = (services(name)["vllm"]["image"] for name in ("compose.yaml", "compose.gpu.yaml"))
    assert cpu == f"vllm/vllm-openai-cpu:v{version}-x86_64"
    assert gpu == container("adapterflow-vllm")["image"] == f"vllm/vllm-openai:v{version}"
    assert cpu in (SERVING / "kubernetes.yaml").read_text()
    assert services()["serving"]["image"] == container("adapterflow-serving")["image"]


def test_both_are_asked_for_their_health() -> None:
    """Requests are sent where `/health` answers; a proxy is not started again for vLLM's sake."""
    for name in ("vllm", "serving"):
        assert "/health" in services()[name]["healthcheck"]["test"][-1]
    vllm, proxy = container("adapterflow-vllm"), container("adapterflow-serving")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert vllm[probe]["httpGet"] == {"path": "/health", "port": "http"}
    assert proxy["readinessProbe"]["httpGet"]["path"] == "/health"
    assert "httpGet" not in proxy["livenessProbe"]


def test_vllm_may_load_adapters_wherever_it_is_started() -> None:
    """Compose and Kubernetes set what `serve` sets."""
    given = (services()["vllm"]["environment"], environment("adapterflow-vllm"))
    for one in given:
        assert ENVIRONMENT.items() <= one.items()


@pytest.fixture
def started(tmp_path: Path) -> Iterator["Started"]:
    """Return what starts `start.sh` with a stand-in of vLLM, and end it."""
    one = Started(tmp_path)
    yield one
    one.end()


class Started:
    """`start.sh` with a program `vllm` that writes what it was given, and waits."""

    def __init__(self, folder: Path) -> None:
        self.written, self.given = folder / "vllm.command", folder / "given"
        program = folder / "vllm"
        program.write_text(
            '#!/bin/sh\n{ echo $$; printf "%s\\n" "$@"; env; } > "$GIVEN.part"\n'
            'mv "$GIVEN.part" "$GIVEN"\nexec sleep 60\n'
        )
        program.chmod(0o755)
        self._path = f"{folder}:{os.environ['PATH']}"

    def start(self, **variables: str) -> "subprocess.Popen[str]":
        """Start it, with these variables beside those that it always has."""
        self.process = subprocess.Popen(
            ["/bin/sh", START, self.written],
            env={"PATH": self._path, "GIVEN": str(self.given), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.process

    def arguments(self) -> list[str]:
        """Wait for the stand-in; return its process id, its arguments and its variables."""
        end = time.monotonic() + 30
        while not self.given.exists() and time.monotonic() < end:
            time.sleep(0.05)
        return self.given.read_text().splitlines()

    def end(self) -> None:
        """End the process if it still runs."""
        self.process.kill()
        self.process.communicate()


def test_vllm_takes_the_shells_place_with_the_command_as_serve_printed_it(started: Started) -> None:
    """Quotation marks and variables arrive, and a signal to the container reaches vLLM."""
    command = ["vllm", "serve", "org/base", "--default-chat-template-kwargs", '{"a": "it\'s $1"}']
    started.written.write_text(command_line(command) + "\n")
    process = started.start(VLLM_API_KEY="a-token")
    pid, *given = started.arguments()
    assert int(pid) == process.pid
    assert given[: len(command) - 1] == command[1:]
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} < set(given)
    assert "VLLM_API_KEY=a-token" in given
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_the_command_is_waited_for(started: Started) -> None:
    """A service that starts before there is a champion says what it waits for."""
    started.written.touch()  # as a shell makes it before the command has printed anything
    process = started.start(VLLM_API_KEY="a-token")
    assert process.stdout
    assert str(started.written) in process.stdout.readline()
    started.written.write_text(command_line(["vllm", "serve", "org/base"]))
    assert "org/base" in started.arguments()


def test_waiting_ends_when_the_container_is_stopped(started: Started) -> None:
    """Its shell is the first process there, which a signal ends only if it is caught."""
    process = started.start(VLLM_API_KEY="a-token")
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_vllm_does_not_start_without_a_token(started: Started) -> None:
    """With an empty one it would load adapters for whoever asks."""
    started.written.write_text(command_line(["vllm", "serve", "org/base"]))
    process = started.start(VLLM_API_KEY="")
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "VLLM_API_KEY" in output
    assert not started.given.exists()


@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_the_manifests_are_valid(version: str) -> None:
    """Each manifest is what Kubernetes's own schema of its kind allows, and no field is unknown."""
    validating = pytest.importorskip(
        "kubernetes_validate", reason="no schemas; install them with: pip install '.[dev]'"
    )
    for one in manifests().values():
        validating.validate(one, version, strict=True)


def test_kubectl_puts_the_files_beside_the_manifests(tmp_path: Path) -> None:
    """`kubectl apply -k` has the proxy's configuration and the script as they are here."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("no kubectl is installed")
    done = subprocess.run(
        [program, "kustomize", SERVING],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    (files,) = [one for one in built if one["kind"] == "ConfigMap"]
    for name in ("start.sh", "proxy.conf.template"):
        assert files["data"][name] == (SERVING / name).read_text()
    deployments = [one["spec"]["template"]["spec"] for one in built if one["kind"] == "Deployment"]
    named = {one["configMap"]["name"] for spec in deployments for one in spec["volumes"][:1]}
    assert named == {files["metadata"]["name"]}
    assert {one["metadata"]["namespace"] for one in built} == {"adapterflow"}
