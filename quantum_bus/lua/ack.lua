-- Acknowledge those entries that this consumer still owns, and note their completion.
-- KEYS[1] stream   KEYS[2] completion stream   KEYS[3..] mark of each entry's message; none where the group keeps no marks
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] service   ARGV[4] completion entries to keep, 0 for none
-- ARGV[5] 1 where the stream is the group's own and an acked entry can go   ARGV[6] how long a mark stands, milliseconds
-- ARGV[7..] entry id, message's id, record in turn
-- Returns the ids that another consumer owns, which are left as they are, and those that are not pending at all.
local lost = {}
local absent = {}
local records = {}
for i = 7, #ARGV, 3 do
  local id = ARGV[i]
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
  if not row then
    absent[#absent + 1] = id
  elseif row[2] == ARGV[2] then
    redis.call('XACK', KEYS[1], ARGV[1], id)
    if ARGV[5] == '1' then
      redis.call('XDEL', KEYS[1], id)
    end
    local mark = KEYS[3 + (i - 7) / 3]
    if mark then -- allowed at maxmemory too, because this script has written already
      redis.call('SET', mark, 'done:' .. ARGV[i + 1], 'PX', ARGV[6])
    end
    records[#records + 1] = ARGV[i + 1]
    records[#records + 1] = ARGV[i + 2]
  else
    lost[#lost + 1] = id
  end
end
if #records > 0 and ARGV[4] ~= '0' then
  -- pcall: at maxmemory the record is refused, and the ack must stand
  redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*',
    'group', ARGV[1], 'service', ARGV[3], 'consumer', ARGV[2], unpack(records))
end
return {lost, absent}
