-- Renew the leases of those entries that this consumer still owns, and has not given up meanwhile (release.lua).
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3..] entry ids
-- Returns the ids that it does not own any more, and those that the stream has no more. JUSTID leaves the delivery count alone.
local lost = {}
local gone = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if row and row[3] >= 1000000000000 then
    -- a renewal that was on its way when it was given up would have others wait for another lease
  elseif row then
    local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
    if #claimed == 0 then -- since 7.0 claiming what the stream has no more takes it off the pending list
      gone[#gone + 1] = id
    end
  else
    lost[#lost + 1] = id
  end
end
return {lost, gone}
