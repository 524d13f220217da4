"""An event bus on Redis Streams whose every message and log line says which flow it belongs to."""
