-- Note that handlers begin to run: the delivery count of an owned entry becomes 1 + its runs. A read sets it to 1, so an
-- entry that was only prefetched when its consumer died is told from one that was being handled.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3..] entry id and delivery count in turn
-- Returns the ids that this consumer does not own any more, and those that the stream has no more.
local lost = {}
local gone = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 1 then
    local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
    if #claimed == 0 then -- since 7.0 claiming what the stream has no more takes it off the pending list
      gone[#gone + 1] = id
    end
  else
    lost[#lost + 1] = id
  end
end
return {lost, gone}
