"""What stands in deploy/, held to the rest of the repository and to what its guides promise. Nothing is started."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantum_bus.config import DEFAULT_STOP_TIMEOUT
from scripts.stack import COLLECTOR_GOGC

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted(DEPLOY.glob("*/Dockerfile"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
HADOLINT = Path(sys.executable).with_name("hadolint")
ON_THE_BUS = {"auto_executor", "portfolio", "ai_engine", "exporter", "redis"}
ADDRESSES = {
    "QUANTUM_LOKI_URL": "http://loki:3100",
    "QUANTUM_PROMETHEUS_URL": "http://prometheus:9090",
    "QUANTUM_ALERTMANAGER_URL": "http://alertmanager:9093",
}
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+(?:\.\d+)?(?:-[\w.]+)*")


def instructions(dockerfile: Path) -> list[list[str]]:
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


# --- compose.yaml -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_hardened_and_limited(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    user, _, group = service["user"].partition(":")
    assert (int(user) > 0 and int(group) > 0) or name == "collector"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["restart"] == "unless-stopped"
    assert service["container_name"] == f"quantum_{name}"
    assert not service.get("privileged")
    assert "test" in service["healthcheck"] or service["profiles"] == ["demo"]


def test_four_ports_are_published_and_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {
        "loki": ["127.0.0.1:3100:3100"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "alertmanager": ["127.0.0.1:9093:9093"],
        "grafana": ["127.0.0.1:3001:3000"],
    }


def test_what_is_on_the_bus_logs_where_the_collector_reads_and_nothing_else_does() -> None:
    for name, service in SERVICES.items():
        logging = service["logging"]
        if name in ON_THE_BUS:
            assert logging["driver"] == "json-file", name
            assert logging["options"]["tag"] == "{{.Name}}"
        else:  # the pipeline's own log would feed itself
            assert logging["driver"] == "local", name
        assert {"max-size", "max-file"} <= set(logging["options"])


def test_images_are_the_versions_that_the_tests_run() -> None:
    pins = {
        "loki": (r"github\.com/grafana/loki/v3 v(\S+)", "tools/loki/go.mod"),
        "alertmanager": (r"github\.com/prometheus/alertmanager v(\S+)", "tools/alertmanager/go.mod"),
        "prometheus": (r"github\.com/prometheus/prometheus v0\.3(\d\d\.\d+)", "tools/prometheus/go.mod"),
        "collector": (r"  version: (\S+)", "collector/manifest.yaml"),
    }
    for name, (pattern, file) in pins.items():
        found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"))
        assert found
        version = f"3.{found[1]}" if name == "prometheus" else found[1]  # the module 0.315.0 is the program 3.15.0
        assert SERVICES[name]["image"].rpartition(":")[2].removeprefix("v") == version, name
    for name, service in SERVICES.items():
        assert PINNED.fullmatch(service["image"]) or "build" in service, f"{name}: {service['image']}"


def test_what_is_mounted_and_what_is_secret_is_there(tmp_path: Path) -> None:
    for name, service in SERVICES.items():
        for mount in service.get("volumes", ()):
            if isinstance(mount, dict) and mount["type"] == "bind" and not mount["source"].startswith("${"):
                assert (DEPLOY / mount["source"]).exists(), f"{name}: {mount['source']}"
                assert mount["read_only"] is True
    subprocess.run([DEPLOY / "make_secrets.sh", tmp_path / "secrets"], check=True, capture_output=True)
    made = {file.name for file in (tmp_path / "secrets").iterdir()}
    named = {Path(secret["file"].rpartition("/")[2]).name for secret in COMPOSE["secrets"].values()}
    assert made == named | {"redis_url_operator"}


def test_secrets_are_made_once_and_nobody_else_enters_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    before = after = {}
    for _ in range(2):
        subprocess.run([DEPLOY / "make_secrets.sh", folder], check=True, capture_output=True)
        before, after = after, {file.name: file.read_text() for file in folder.iterdir()}
    assert before == after
    assert folder.stat().st_mode & 0o777 == 0o700
    users = after["redis_users"]
    assert "PASSWORD" not in users
    for user, file in (
        ("service", "redis_url"),
        ("exporter", "redis_url_exporter"),
        ("operator", "redis_url_operator"),
    ):
        password = re.fullmatch(rf"redis://{user}:([\w=-]{{32}})@redis:6379/0\n", after[file])
        assert password
        assert f"user {user} on >{password[1]} " in users


def test_no_secret_is_in_the_environment_or_a_command() -> None:
    for service in SERVICES.values():
        words = [*service.get("command", ()), *map(str, (service.get("environment") or {}).items())]
        assert not [word for word in words if re.search(r"(?i)password|token|@", word) and "/run/secrets/" not in word]


def test_prometheus_has_the_same_configuration_there_but_for_addresses() -> None:
    def without_addresses(file: Path) -> Any:
        return yaml.safe_load(re.sub(r"(?:[\w.]+):(\d{4})\b", r"HOST:\1", file.read_text(encoding="utf-8")))

    here, there = ROOT / "observability/prometheus/prometheus.yml", DEPLOY / "prometheus/prometheus.yml"
    assert without_addresses(there) == without_addresses(here)
    names = set(re.findall(r"([\w.]+):\d{4}\b", there.read_text(encoding="utf-8")))
    assert names - {"127.0.0.1"} <= set(SERVICES)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("collector", "collector/config.yaml"),
        ("loki", "observability/loki/loki.yaml"),
        ("grafana", "observability/grafana/provisioning/datasources/quantum-bus.yaml"),
    ],
)
def test_each_address_that_a_configuration_asks_for_is_that_of_a_container(name: str, file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(?:env:)?(QUANTUM_(?:LOKI|PROMETHEUS|ALERTMANAGER)_URL)\b", text))
    assert asked
    given = {key: SERVICES[name]["environment"].get(key) for key in asked}
    assert given == {key: ADDRESSES[key] for key in asked}


def test_the_collectors_garbage_is_collected_as_make_stack_does_it() -> None:
    assert SERVICES["collector"]["environment"]["GOGC"] == COLLECTOR_GOGC
    assert f"GOGC={COLLECTOR_GOGC}" in directives(DEPLOY / "systemd/quantum-collector.service")["Environment"]


def test_prometheus_takes_what_loki_records_and_is_stopped_after_it() -> None:
    receiver = "--web.enable-remote-write-receiver"
    assert receiver in SERVICES["prometheus"]["command"]
    assert "prometheus" in SERVICES["loki"]["depends_on"]
    prometheus, loki = (directives(DEPLOY / f"systemd/quantum-{name}.service") for name in ("prometheus", "loki"))
    assert receiver in prometheus["ExecStart"][0].split()
    assert "quantum-prometheus.service" in loki["After"][0].split()
    listens = re.search(r"--web.listen-address=(\S+)", prometheus["ExecStart"][0])
    assert listens
    assert f"QUANTUM_PROMETHEUS_URL=http://{listens[1]}" in " ".join(loki["Environment"]).split()
    # Where it is away Loki tries for a minute to hand over its last samples, and is not killed meanwhile.
    assert int(loki["TimeoutStopSec"][0]) > 60
    assert int(SERVICES["loki"]["stop_grace_period"].removesuffix("s")) > 60


# --- Dockerfiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.parent.name)
def test_what_an_image_copies_is_there_and_its_bases_are_pinned(dockerfile: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    stages: set[str] = set()
    for name, *words in instructions(dockerfile):
        if name == "FROM":
            assert words[0] in stages or PINNED.fullmatch(words[0]), words
            stages |= {words[2]} if len(words) == 3 else set()
        elif name == "COPY" and not words[0].startswith("--from="):
            for source in words[:-1]:
                assert list(ROOT.glob(source)), source
                assert any(source.startswith(folder) for folder in sent), f"{source} is kept out by .dockerignore"
    assert len(stages) == 1  # what builds is not in what runs
    users = [words[0] for name, *words in instructions(dockerfile) if name == "USER"]
    assert users
    assert not users[-1].startswith(("0", "root"))


def test_dockerfiles_pass_hadolint_which_sees_a_mistake(tmp_path: Path) -> None:
    def lint(*files: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([HADOLINT, *files], capture_output=True, text=True, check=False)

    good = lint(*DOCKERFILES)
    assert good.returncode == 0, good.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILES[0].read_text(encoding="utf-8").replace("alpine:3.22.2", "alpine:latest"))
    assert "DL3007" in lint(bad).stdout


# --- systemd ------------------------------------------------------------------------------------------------------


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_every_unit_starts_again_with_bounds_and_as_nobody_special(unit: Path) -> None:
    told = directives(unit)
    assert unit.name.startswith("quantum-")  # so that the drop-in for all of them is its, too
    assert told["StartLimitBurst"] == ["10"]
    assert "MemoryMax" in told
    assert told.get("User", ["dynamic"]) != ["root"]
    users = (DEPLOY / "systemd/quantum-bus.sysusers.conf").read_text(encoding="utf-8")
    assert all(re.search(rf"^u {user} ", users, re.MULTILINE) for user in told.get("User", ()))
    assert not [value for value in told.get("Environment", ()) if re.search(r"://\S*@|(?i:password)", value)]


def test_a_service_has_longer_to_end_than_its_handlers() -> None:
    unit = directives(DEPLOY / "systemd/quantum-bus@.service")
    given = re.search(r"--stop-timeout=(\d+)", unit["ExecStart"][0])
    assert given
    assert float(given[1]) == DEFAULT_STOP_TIMEOUT
    assert int(unit["TimeoutStopSec"][0]) > DEFAULT_STOP_TIMEOUT
    for name in ("auto_executor", "portfolio"):
        assert f"--stop-timeout={DEFAULT_STOP_TIMEOUT:g}" in SERVICES[name]["command"]
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > DEFAULT_STOP_TIMEOUT


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze: `make system-packages` installs it"
)


@needs_systemd
def test_units_pass_systemds_own_checks() -> None:
    checked = subprocess.run([ROOT / "scripts/check_units.sh"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    exposed = dict(re.findall(r"^deploy/systemd/(\S+): valid, exposed ([\d.]+) of 10$", checked.stdout, re.MULTILINE))
    assert set(exposed) == {*(unit.name for unit in UNITS), "50-containers.conf"}
    assert max(map(float, exposed.values())) <= 2.0


@needs_systemd
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("quantum-loki.service", "TimeoutStopSec=", "TimeoutStoppSec="),
        ("quantum-.service.d/10-hardening.conf", "ProtectSystem=strict\n", ""),
    ],
)
def test_a_mistake_in_a_unit_or_a_protection_less_is_seen(file: str, right: str, wrong: str, tmp_path: Path) -> None:
    for folder in ("deploy/systemd", "scripts"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / folder, tmp_path / folder], check=True)
    broken = tmp_path / "deploy/systemd" / file
    text = broken.read_text(encoding="utf-8")
    assert right in text
    broken.write_text(text.replace(right, wrong))
    if not wrong:  # one of many: with half of them gone it is too exposed
        broken.write_text(re.sub(r"(?m)^(?:Protect|Private|Restrict|SystemCall).*\n", "", text))
    checked = subprocess.run([tmp_path / "scripts/check_units.sh"], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert ("not valid" if wrong else "too exposed") in checked.stderr
