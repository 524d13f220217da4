-- Publish as publish.lua does, which stands between this and indexed.lua, and note the entry in the index of its flow.
-- KEYS[1] index   KEYS[2..] as KEYS[1..] of publish.lua
-- ARGV[1] correlation id   ARGV[2] message's id   ARGV[3] how long the index stands, milliseconds
-- ARGV[4] bytes of one flow's ids, beyond which they are left out   ARGV[5..] as ARGV[1..] of publish.lua
local function publish(KEYS, ARGV)
