"""How long Loki keeps lines and what it takes, as docs/pipeline.md says; rules rolled back on a real Prometheus."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scripts.stack import ROOT, Program, Stack, prometheus, tool
from tests.stack.asking import get_good, wait_until
from tests.stack.running import Running

CONFIG = ROOT / "observability/loki/loki.yaml"


def test_loki_keeps_thirty_days_and_takes_fifty_megabytes_a_second() -> None:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    limits, compactor = config["limits_config"], config["compactor"]
    assert limits["retention_period"] == limits["reject_old_samples_max_age"] == "720h"
    assert (limits["ingestion_rate_mb"], limits["ingestion_burst_size_mb"]) == (50, 100)
    assert (limits["per_stream_rate_limit"], limits["per_stream_rate_limit_burst"]) == ("50MB", "100MB")
    assert (limits["max_line_size"], limits["max_global_streams_per_user"]) == ("1536KB", 5000)
    assert compactor["retention_enabled"] is True
    assert compactor["delete_request_store"] == "filesystem"


def test_fourteen_days_are_one_number(tmp_path: Path) -> None:
    text = CONFIG.read_text()
    assert text.count("retention_period: 720h") == 1
    changed = tmp_path / "loki.yaml"
    changed.write_text(text.replace("retention_period: 720h", "retention_period: 336h"))
    verified = subprocess.run(
        [tool("loki"), f"-config.file={changed}", "-config.expand-env=true", "-verify-config"],
        capture_output=True, text=True, check=False, env={**os.environ, "QUANTUM_LOKI_DATA": str(tmp_path)},
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr


def test_rules_are_rolled_back_by_a_signal_and_a_wrong_one_changes_nothing(
    stack: Stack, start: Callable[[Program], Running]
) -> None:
    rules = stack.folder / "rules"
    shutil.copytree(ROOT / "observability/prometheus/rules", rules)
    file = rules / "p1b_alerts.yml"
    old = file.read_text()
    running = start(prometheus(stack, rules=rules))

    def alerts() -> set[str]:
        groups = get_good(f"{stack.prometheus_url}/api/v1/rules").json()["data"]["groups"]
        return {rule["name"] for group in groups for rule in group["rules"]}

    def reloaded() -> str:
        text = get_good(f"{stack.prometheus_url}/metrics").text
        return next(line for line in text.splitlines() if line.startswith("prometheus_config_last_reload_successful "))

    assert "HighErrorRate" in alerts()
    file.write_text(old.replace("alert: HighErrorRate", "alert: Renamed"))
    os.kill(running.pid, signal.SIGHUP)
    wait_until(lambda: "Renamed" in alerts(), timeout=30, what="the new rules")
    file.write_text("groups: nonsense")
    os.kill(running.pid, signal.SIGHUP)
    wait_until(lambda: reloaded().endswith(" 0"), timeout=30, what="the wrong rules refused")
    assert "Renamed" in alerts()
    file.write_text(old)
    os.kill(running.pid, signal.SIGHUP)
    wait_until(lambda: "HighErrorRate" in alerts(), timeout=30, what="the old rules")
