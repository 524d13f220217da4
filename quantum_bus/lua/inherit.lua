-- Take over what is pending in the group, whoever had it and however lately, if this consumer leads.
-- KEYS[1] lease   KEYS[2] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3] first id   ARGV[4] how many at most
-- Returns nil where it does not lead; else the last id looked at (empty: there are no more), entries as {id, delivery
-- count, fields}, the ids that the stream has no more, which are acknowledged, and how many were another consumer's.
-- JUSTID leaves the delivery count alone: it counts runs (begin.lua).
if redis.call('GET', KEYS[1]) ~= ARGV[2] then
  return false
end
local entries = {}
local deleted = {}
local others = 0
local last = ''
for _, row in ipairs(redis.call('XPENDING', KEYS[2], ARGV[1], ARGV[3], '+', ARGV[4])) do
  last = row[1]
  local found = redis.call('XRANGE', KEYS[2], last, last)
  if #found == 0 then
    redis.call('XACK', KEYS[2], ARGV[1], last)
    deleted[#deleted + 1] = last
  else
    redis.call('XCLAIM', KEYS[2], ARGV[1], ARGV[2], 0, last, 'JUSTID')
    entries[#entries + 1] = {last, row[4], found[1][2]}
    if row[2] ~= ARGV[2] then
      others = others + 1
    end
  end
end
return {last, entries, deleted, others}
