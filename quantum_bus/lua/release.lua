-- Give up owned entries at once: their idle time becomes longer than others wait for, and than any lease (keep.lua).
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3] idle time, milliseconds   ARGV[4..] entry ids
-- Returns how many were given up.
local released = 0
for i = 4, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'IDLE', ARGV[3], 'JUSTID')
    released = released + 1
  end
end
return released
