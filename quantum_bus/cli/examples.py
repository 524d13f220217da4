"""What ``--help`` shows below the options of each command."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "demo": ("quantum-bus demo", "quantum-bus demo --json | jq .services"),
    "doctor": (
        "quantum-bus doctor",
        "quantum-bus doctor --stream orders --group billing --fail-on error",
    ),
    "exporter": ("quantum-bus exporter --listen 127.0.0.1:9464", "quantum-bus exporter --otlp http://localhost:4318"),
    "lag": (
        "quantum-bus lag",
        "quantum-bus lag --stream orders --group billing --max-messages 1000 --max-seconds 60 || page-somebody",
    ),
    "publish": (
        """quantum-bus publish orders '{"symbol":"BTCUSDT"}' --event ORDER_SUBMIT --key BTCUSDT""",
        "quantum-bus publish orders - --rate 100 < orders.jsonl > receipts.jsonl",
        """echo '{"payload":{"n":1},"event":"E"}' | quantum-bus publish orders - --events""",
    ),
    "run": ("quantum-bus run app.main:bus", "quantum-bus run app.main:make_bus --log-level DEBUG --stop-timeout 60"),
    "status": (
        "quantum-bus status",
        "quantum-bus status --watch",
        "quantum-bus status --json | jq '.streams[].groups'",
    ),
    "tail": (
        "quantum-bus tail",
        "quantum-bus tail orders payments --event ORDER_FILLED --last 10",
        "quantum-bus tail --field symbol=BTCUSDT --json | jq .data",
    ),
    "trace": (
        "quantum-bus trace 4bf92f3577b34da6a3ce929d0e0e4736",
        "quantum-bus trace order_4711 --since 2h --follow",
        "quantum-bus trace ID --logs logs/*.jsonl",
        "quantum-bus trace ID --loki http://localhost:3100 --json",
    ),
    "dlq list": ("quantum-bus dlq list orders --reason max_attempts --newer-than 1h",),
    "dlq show": ("quantum-bus dlq show orders 1735900523456-0",),
    "dlq replay": (
        "quantum-bus dlq replay orders 1735900523456-0",
        "quantum-bus dlq replay orders --error ValueError --rate 10 --dry-run",
    ),
    "dlq purge": ("quantum-bus dlq purge orders --older-than 30d --dry-run",),
}


def epilog(command: str) -> str:
    """The examples as a paragraph that is not wrapped anew."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
