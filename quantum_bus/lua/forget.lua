-- Remove names of consumers that have nothing pending and have not been seen for long.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] idle time, milliseconds   ARGV[3] a name that stays
-- Returns how many were removed. Looked at and removed in one step: XGROUP DELCONSUMER discards what is pending.
local removed = 0
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #row, 2 do
    consumer[row[i]] = row[i + 1]
  end
  if consumer['pending'] == 0 and consumer['idle'] > tonumber(ARGV[2]) and consumer['name'] ~= ARGV[3] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer['name'])
    removed = removed + 1
  end
end
return removed
