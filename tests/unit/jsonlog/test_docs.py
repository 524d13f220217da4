"""The page for users runs as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "logging.md"


def test_every_example_of_the_page_runs_in_turn(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(PAGE.parents[1])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"SERVICE_STARTED", "INTENT_RECEIVED", "ORDER_RESPONSE", "ORDER_ERROR"} <= {
        record["event"] for record in records
    }
    assert (tmp_path / "logs" / "auto_executor.jsonl").exists()
