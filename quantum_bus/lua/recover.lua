-- Take over entries whose consumer has not renewed its lease.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3] lease, milliseconds   ARGV[4] cursor   ARGV[5] how many
-- Returns the next cursor, entries as {id, delivery count, fields}, and the ids that the stream has no more: those are
-- acknowledged, because nothing can be done for them. JUSTID leaves the delivery count alone: it counts runs (begin.lua).
local claimed = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5], 'JUSTID')
local entries = {}
local deleted = claimed[3] or {}
for _, id in ipairs(claimed[2]) do
  local found = redis.call('XRANGE', KEYS[1], id, id)
  if #found == 0 then
    redis.call('XACK', KEYS[1], ARGV[1], id)
    deleted[#deleted + 1] = id
  else
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])
    entries[#entries + 1] = {id, pending[1][4], found[1][2]}
  end
end
return {claimed[1], entries, deleted}
