-- What this consumer was given and has not settled: the entries of a reply that was lost are there. A history read
-- (XREADGROUP with an id) would raise the delivery counts, which count runs here.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3] first id   ARGV[4] how many at most
-- Returns the last id looked at (empty: there are no more), entries as {id, delivery count, fields}, and the ids that the
-- stream has no more: those are acknowledged, because nothing can be done for them.
local entries = {}
local deleted = {}
local last = ''
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4], ARGV[2])) do
  last = row[1]
  local found = redis.call('XRANGE', KEYS[1], last, last)
  if #found == 0 then
    redis.call('XACK', KEYS[1], ARGV[1], last)
    deleted[#deleted + 1] = last
  else
    entries[#entries + 1] = {last, row[4], found[1][2]}
  end
end
return {last, entries, deleted}
