-- Remove names of consumers that have nothing pending: those not seen for long, and one's own when leaving.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] idle time, milliseconds   ARGV[3] own name   ARGV[4] 1 when leaving
-- Returns how many were removed. Looked at and removed in one step: XGROUP DELCONSUMER discards what is pending.
local removed = 0
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #row, 2 do
    consumer[row[i]] = row[i + 1]
  end
  local own = consumer['name'] == ARGV[3]
  local done = own and ARGV[4] == '1' or not own and consumer['idle'] > tonumber(ARGV[2])
  if done and consumer['pending'] == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer['name'])
    removed = removed + 1
  end
end
return removed
