"""Every name that leaves the process: spans, metrics, attributes, log events, stream fields and keys.

Names are a contract with dashboards, alert rules and other languages, so each stands here once. The sources:

* messaging spans and metrics: OpenTelemetry semantic conventions, *messaging* (status: Development);
* ``messaging.system``: no value is registered for Redis Streams, so ``redis`` is used;
* ``quantum_bus.*``: what the conventions have no name for.
"""

from __future__ import annotations

from typing import Final

INSTRUMENTATION_NAME: Final = "quantum_bus"

# --- stream fields, wire format version 1 -------------------------------------------------------

WIRE_VERSION: Final = 1

FIELD_VERSION: Final = "v"
FIELD_DATA: Final = "data"
FIELD_EVENT: Final = "event"
FIELD_KEY: Final = "key"
FIELD_MESSAGE_ID: Final = "message_id"
FIELD_CORRELATION_ID: Final = "correlation_id"
FIELD_CAUSATION_ID: Final = "causation_id"
FIELD_TRACEPARENT: Final = "traceparent"
FIELD_TRACESTATE: Final = "tracestate"
FIELD_BAGGAGE: Final = "baggage"
FIELD_SERVICE: Final = "service"
FIELD_TS: Final = "ts"
HEADER_PREFIX: Final = "h."

# The first user's older format, read but never written.
FOREIGN_PAYLOAD: Final = "payload"
FOREIGN_EVENT: Final = "event_type"
FOREIGN_SERVICE: Final = "source"
FOREIGN_TS: Final = "timestamp"

# --- dead-letter fields, behind the untouched original ones --------------------------------------

DLQ_STREAM: Final = "dlq.stream"
DLQ_ID: Final = "dlq.id"
DLQ_GROUP: Final = "dlq.group"
DLQ_CONSUMER: Final = "dlq.consumer"
DLQ_ATTEMPTS: Final = "dlq.attempts"
DLQ_REASON: Final = "dlq.reason"
DLQ_ERROR_TYPE: Final = "dlq.error_type"
DLQ_ERROR_MESSAGE: Final = "dlq.error_message"
DLQ_STACK: Final = "dlq.stack"
DLQ_FIRST_FAILED_AT: Final = "dlq.first_failed_at"
DLQ_LAST_FAILED_AT: Final = "dlq.last_failed_at"
DLQ_SPAN: Final = "dlq.span"
# Stands before these, in place of the original fields, where there are too many of those.
DLQ_PACKED: Final = "dlq.packed"

DLQ_FIELDS: Final = frozenset(
    (
        DLQ_STREAM,
        DLQ_ID,
        DLQ_GROUP,
        DLQ_CONSUMER,
        DLQ_ATTEMPTS,
        DLQ_REASON,
        DLQ_ERROR_TYPE,
        DLQ_ERROR_MESSAGE,
        DLQ_STACK,
        DLQ_FIRST_FAILED_AT,
        DLQ_LAST_FAILED_AT,
        DLQ_SPAN,
        DLQ_PACKED,
    )
)

# --- fields that a replay into the stream itself appends to the original ones -----------------------

REPLAY_ID: Final = "replay.id"
REPLAY_SPAN: Final = "replay.span"

REPLAY_FIELDS: Final = frozenset((REPLAY_ID, REPLAY_SPAN))

# Why a message is dead: the values of ``dlq.reason``.
REASON_UNDECODABLE: Final = "undecodable"
REASON_UNSUPPORTED_VERSION: Final = "unsupported_version"
REASON_INVALID_PAYLOAD: Final = "invalid_payload"
REASON_MAX_ATTEMPTS: Final = "max_attempts"
REASON_REJECTED: Final = "rejected"
REASON_GAVE_UP: Final = "gave_up"

# --- side keys: `{name}:suffix`, see streams.side_key --------------------------------------------

SUFFIX_DLQ: Final = "dlq"
SUFFIX_COMPLETED: Final = "completed"
SUFFIX_NOTES: Final = "upkeep"
SUFFIX_MARKS: Final = "marks"
# With a message's id behind it: `{name}:dedupe:<message_id>`.
SUFFIX_DEDUPE: Final = "dedupe"
# A group's own: `{name}:retry:<group>`.
SUFFIX_RETRY: Final = "retry"
# Of what is published with a delay as they stand, and of a group's retries: `{name}:due`, `{name}:due:<group>`.
SUFFIX_DUE: Final = "due"
SUFFIX_COPIES: Final = "scheduled"
# And one for each message's id: `{name}:seen:<group>:<message_id>`.
SUFFIX_SEEN: Final = "seen"
SUFFIX_LEASE: Final = "lease"
# With the hour and a shard behind it: `{name}:flows:<hour>:<shard>`, see flow_index.py.
SUFFIX_FLOWS: Final = "flows"

# --- fields that a retry appends to an entry in `{name}:retry:<group>` ----------------------------

RETRY_ID: Final = "retry.id"
RETRY_ATTEMPTS: Final = "retry.attempts"
RETRY_FIRST_FAILED_AT: Final = "retry.first_failed_at"
RETRY_SPAN: Final = "retry.span"

# --- completion records, in `{name}:completed`: one JSON object for each message ---------------------

RECORD_MESSAGE_ID: Final = "message_id"
RECORD_CORRELATION_ID: Final = "correlation_id"
RECORD_STARTED: Final = "started"
RECORD_DURATION: Final = "duration"
RECORD_ATTEMPT: Final = "attempt"
RECORD_OUTCOME: Final = "outcome"

# --- HTTP ------------------------------------------------------------------------------------------

HEADER_TRACEPARENT: Final = "traceparent"
HEADER_TRACESTATE: Final = "tracestate"
HEADER_BAGGAGE: Final = "baggage"
HEADER_CORRELATION_ID: Final = "X-Correlation-ID"

# --- probes ----------------------------------------------------------------------------------------

PATH_LIVE: Final = "/livez"
PATH_READY: Final = "/readyz"

# Where a bus is in its life: `state` in a probe's answer.
HEALTH_STARTING: Final = "starting"
HEALTH_RUNNING: Final = "running"
HEALTH_DRAINING: Final = "draining"
HEALTH_STOPPED: Final = "stopped"

# What a subscriber does: `doing` there.
DOING_READING: Final = "reading"
DOING_FULL: Final = "full"
DOING_PAUSED: Final = "paused"
DOING_BREAKER_OPEN: Final = "breaker open"
DOING_STANDING_BY: Final = "standing by"
DOING_NOTHING: Final = "nothing"

# --- environment -----------------------------------------------------------------------------------

ENV_URL: Final = "QUANTUM_BUS_URL"
ENV_URL_FILE: Final = "QUANTUM_BUS_URL_FILE"
ENV_SERVICE: Final = "QUANTUM_BUS_SERVICE"
ENV_OTEL_SERVICE: Final = "OTEL_SERVICE_NAME"
ENV_LOG_FORMAT: Final = "QUANTUM_BUS_LOG_FORMAT"
ENV_LOG_DIR: Final = "QUANTUM_LOG_DIR"

# --- spans -----------------------------------------------------------------------------------------

OPERATION_SEND: Final = "send"
OPERATION_PROCESS: Final = "process"

ATTR_SYSTEM: Final = "messaging.system"
ATTR_OPERATION_NAME: Final = "messaging.operation.name"
ATTR_OPERATION_TYPE: Final = "messaging.operation.type"
ATTR_DESTINATION: Final = "messaging.destination.name"
ATTR_GROUP: Final = "messaging.consumer.group.name"
ATTR_CLIENT_ID: Final = "messaging.client.id"
ATTR_MESSAGE_ID: Final = "messaging.message.id"
ATTR_CONVERSATION_ID: Final = "messaging.message.conversation_id"
ATTR_BODY_SIZE: Final = "messaging.message.body.size"
ATTR_BATCH_COUNT: Final = "messaging.batch.message_count"
ATTR_ERROR_TYPE: Final = "error.type"
ATTR_SERVER_ADDRESS: Final = "server.address"
ATTR_SERVER_PORT: Final = "server.port"
ATTR_EVENT: Final = "quantum_bus.event"
ATTR_ENTRY_ID: Final = "quantum_bus.entry.id"
ATTR_ATTEMPT: Final = "quantum_bus.attempt"
ATTR_OUTCOME: Final = "quantum_bus.outcome"

SYSTEM_REDIS: Final = "redis"

EXCEPTION_EVENT: Final = "exception"
ATTR_EXCEPTION_TYPE: Final = "exception.type"
ATTR_EXCEPTION_MESSAGE: Final = "exception.message"
ATTR_EXCEPTION_STACK: Final = "exception.stacktrace"

# Outcomes of one handling: the values of ``quantum_bus.outcome``.
OUTCOME_ACK: Final = "ack"
OUTCOME_RETRY: Final = "retry"
OUTCOME_DEAD_LETTER: Final = "dead_letter"
OUTCOME_ABANDONED: Final = "abandoned"
OUTCOME_SKIP: Final = "skip"

# --- metrics ---------------------------------------------------------------------------------------

METRIC_OPERATION_DURATION: Final = "messaging.client.operation.duration"
METRIC_PROCESS_DURATION: Final = "messaging.process.duration"
METRIC_SENT: Final = "messaging.client.sent.messages"
METRIC_CONSUMED: Final = "messaging.client.consumed.messages"
METRIC_DEAD_LETTERS: Final = "quantum_bus.dead_letters"
METRIC_RETRIES: Final = "quantum_bus.retries"
METRIC_IN_FLIGHT: Final = "quantum_bus.in_flight"
METRIC_LOST: Final = "quantum_bus.lost"
METRIC_RECOVERED: Final = "quantum_bus.recovered"
METRIC_LEASES_LOST: Final = "quantum_bus.leases_lost"
METRIC_SKIPPED: Final = "quantum_bus.skipped"
METRIC_BREAKER_STATE: Final = "quantum_bus.breaker.state"
METRIC_REDELIVERED: Final = "quantum_bus.redelivered"

# Of a stream or a group as it stands in Redis, not of a process: `quantum-bus exporter` asks for them.
METRIC_LAG: Final = "quantum_bus.lag"
METRIC_LAG_AGE: Final = "quantum_bus.lag.age"
METRIC_PENDING: Final = "quantum_bus.pending"
METRIC_PENDING_AGE: Final = "quantum_bus.pending.age"
METRIC_SCHEDULED: Final = "quantum_bus.scheduled"
METRIC_SCHEDULED_DUE: Final = "quantum_bus.scheduled.due"
METRIC_CONSUMERS: Final = "quantum_bus.consumers"
METRIC_CONSUMERS_ALIVE: Final = "quantum_bus.consumers.alive"
METRIC_DEAD_LETTER_SIZE: Final = "quantum_bus.dead_letter.size"
METRIC_STREAM_LENGTH: Final = "quantum_bus.stream.length"
METRIC_EXPORTER_UP: Final = "quantum_bus.exporter.up"
METRIC_EXPORTER_LAST_SUCCESS: Final = "quantum_bus.exporter.last_success"
METRIC_EXPORTER_LEFT_OUT: Final = "quantum_bus.exporter.left_out"
METRIC_EXPORTER_REFUSED: Final = "quantum_bus.exporter.refused"

# What the collector counts in log lines: `signal_to_metrics` in collector/config.yaml.
METRIC_LOG_RECORDS: Final = "quantum_bus.log.records"
METRIC_LOG_ORDER_LATENCY: Final = "quantum_bus.log.order_latency"

# What Loki's ruler records from the log, as Prometheus has it: observability/loki/rules.
RECORDED_LOST_LINES: Final = "service:quantum_bus_log_lost_lines:sum12h"

# Boundaries in seconds, as the messaging conventions advise.
DURATION_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# --- log lines -------------------------------------------------------------------------------------

LOG_TS: Final = "ts"
LOG_LEVEL: Final = "level"
LOG_SERVICE: Final = "service"
LOG_EVENT: Final = "event"
LOG_CORRELATION_ID: Final = "correlation_id"
LOG_MSG: Final = "msg"
LOG_TRACE_ID: Final = "trace_id"
LOG_SPAN_ID: Final = "span_id"
LOG_EXC_TYPE: Final = "exc_type"
LOG_EXC_MESSAGE: Final = "exc_message"
LOG_STACK: Final = "stack"

DEFAULT_EVENT: Final = "LOG"
EVENT_SERVICE_STARTED: Final = "SERVICE_STARTED"
EVENT_SERVICE_STOPPED: Final = "SERVICE_STOPPED"

# The trading services' events.
EVENT_INTENT_CREATED: Final = "INTENT_CREATED"
EVENT_INTENT_RECEIVED: Final = "INTENT_RECEIVED"
EVENT_ORDER_SUBMIT: Final = "ORDER_SUBMIT"
EVENT_ORDER_RESPONSE: Final = "ORDER_RESPONSE"
EVENT_ORDER_FILLED: Final = "ORDER_FILLED"
EVENT_ORDER_ERROR: Final = "ORDER_ERROR"
EVENT_POSITION_UPDATED: Final = "POSITION_UPDATED"

# The bus's own.
EVENT_BUS_STARTED: Final = "BUS_STARTED"
EVENT_BUS_DRAINING: Final = "BUS_DRAINING"
EVENT_BUS_STOPPED: Final = "BUS_STOPPED"
EVENT_BUS_CONNECTION_LOST: Final = "BUS_CONNECTION_LOST"
EVENT_BUS_RECONNECTED: Final = "BUS_RECONNECTED"
EVENT_BUS_GROUP_CREATED: Final = "BUS_GROUP_CREATED"
EVENT_BUS_GROUP_RECREATED: Final = "BUS_GROUP_RECREATED"
EVENT_BUS_READ_FAILED: Final = "BUS_READ_FAILED"
EVENT_BUS_SETTLE_FAILED: Final = "BUS_SETTLE_FAILED"
EVENT_BUS_SCHEDULE_FAILED: Final = "BUS_SCHEDULE_FAILED"
EVENT_BUS_HANDLER_FAILED: Final = "BUS_HANDLER_FAILED"
EVENT_BUS_DEAD_LETTERED: Final = "BUS_DEAD_LETTERED"
EVENT_BUS_DEAD_LETTER_FAILED: Final = "BUS_DEAD_LETTER_FAILED"
EVENT_BUS_MESSAGE_LOST: Final = "BUS_MESSAGE_LOST"
EVENT_BUS_LEASE_LOST: Final = "BUS_LEASE_LOST"
EVENT_BUS_RECOVERED: Final = "BUS_RECOVERED"
EVENT_BUS_LEADING: Final = "BUS_LEADING"
EVENT_BUS_STANDING_BY: Final = "BUS_STANDING_BY"
EVENT_BUS_ABANDONED: Final = "BUS_ABANDONED"
EVENT_BUS_SKIPPED: Final = "BUS_SKIPPED"
EVENT_BUS_STREAM_LONG: Final = "BUS_STREAM_LONG"
EVENT_BUS_BREAKER_OPENED: Final = "BUS_BREAKER_OPENED"
EVENT_BUS_BREAKER_CLOSED: Final = "BUS_BREAKER_CLOSED"
EVENT_BUS_INTERNAL_ERROR: Final = "BUS_INTERNAL_ERROR"
EVENT_BUS_PAUSED: Final = "BUS_PAUSED"
EVENT_BUS_RESUMED: Final = "BUS_RESUMED"
EVENT_BUS_CORRELATION_ID_REPLACED: Final = "BUS_CORRELATION_ID_REPLACED"

# The logging's own.
EVENT_LOG_RECORDS_DROPPED: Final = "LOG_RECORDS_DROPPED"
EVENT_LOG_FILE_CLOSED: Final = "LOG_FILE_CLOSED"

# What may become an index label in Loki; every other event name is filed under OTHER there.
LISTED_EVENTS: Final = (
    DEFAULT_EVENT,
    EVENT_SERVICE_STARTED,
    EVENT_SERVICE_STOPPED,
    EVENT_INTENT_CREATED,
    EVENT_INTENT_RECEIVED,
    EVENT_ORDER_SUBMIT,
    EVENT_ORDER_RESPONSE,
    EVENT_ORDER_FILLED,
    EVENT_ORDER_ERROR,
    EVENT_POSITION_UPDATED,
    EVENT_BUS_STARTED,
    EVENT_BUS_DRAINING,
    EVENT_BUS_STOPPED,
    EVENT_BUS_CONNECTION_LOST,
    EVENT_BUS_RECONNECTED,
    EVENT_BUS_GROUP_CREATED,
    EVENT_BUS_GROUP_RECREATED,
    EVENT_BUS_READ_FAILED,
    EVENT_BUS_SETTLE_FAILED,
    EVENT_BUS_SCHEDULE_FAILED,
    EVENT_BUS_HANDLER_FAILED,
    EVENT_BUS_DEAD_LETTERED,
    EVENT_BUS_DEAD_LETTER_FAILED,
    EVENT_BUS_MESSAGE_LOST,
    EVENT_BUS_LEASE_LOST,
    EVENT_BUS_RECOVERED,
    EVENT_BUS_LEADING,
    EVENT_BUS_STANDING_BY,
    EVENT_BUS_ABANDONED,
    EVENT_BUS_SKIPPED,
    EVENT_BUS_STREAM_LONG,
    EVENT_BUS_BREAKER_OPENED,
    EVENT_BUS_BREAKER_CLOSED,
    EVENT_BUS_INTERNAL_ERROR,
    EVENT_BUS_PAUSED,
    EVENT_BUS_RESUMED,
    EVENT_BUS_CORRELATION_ID_REPLACED,
    EVENT_LOG_RECORDS_DROPPED,
    EVENT_LOG_FILE_CLOSED,
)
EVENT_OTHER: Final = "OTHER"
