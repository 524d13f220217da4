-- Take the group's lease, or renew it, if nobody else has it.
-- KEYS[1] lease   ARGV[1] consumer   ARGV[2] milliseconds that it lasts
-- Returns {'acquired'}, {'renewed'}, or {'held', by whom}. Who has resigned is not given it again: what was on its way
-- when it resigned would take it back. PEXPIRE, so that a renewal stands at maxmemory.
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'renewed'}
end
local resigned = ' (resigned)' -- no consumer's name ends like this
if not holder or (string.sub(holder, -#resigned) == resigned and holder ~= ARGV[1] .. resigned) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return {'acquired'}
end
return {'held', holder}
