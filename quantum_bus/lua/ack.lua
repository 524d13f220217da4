-- Acknowledge those entries that this consumer still owns.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3..] entry ids
-- Returns the ids that it does not own any more; they are left as they are.
local lost = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    redis.call('XACK', KEYS[1], ARGV[1], id)
  else
    lost[#lost + 1] = id
  end
end
return lost
