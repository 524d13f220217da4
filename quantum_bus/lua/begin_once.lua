-- As begin.lua, for a group that handles a message's id once in a window: what it has completed is acknowledged and noted
-- as skipped, in this one step; of two entries under one id only one may be begun, until it is settled.
-- KEYS[1] stream   KEYS[2] completion stream   KEYS[3..] mark of each entry's message: 'run:' or 'done:', and the message's id
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] service   ARGV[4] completion entries to keep, 0 for none
-- ARGV[5] 1 where the stream is the group's own and an acked entry can go   ARGV[6] window, milliseconds
-- ARGV[7..] entry id, delivery count, message's id, record of its being skipped in turn
-- Returns the ids that this consumer does not own any more, those that the stream has no more, those that were skipped, and
-- those whose message is being handled under another entry.
local lost, gone, skipped, busy = {}, {}, {}, {}
local records = {}
for i = 3, #KEYS do
  local at = 7 + (i - 3) * 4
  local id, own = ARGV[at], 'run:' .. ARGV[at + 2]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 0 then
    lost[#lost + 1] = id
  else
    local mark = redis.pcall('GET', KEYS[i])
    if type(mark) ~= 'string' then
      mark = nil -- there is none, or something else stands in its place
    end
    if mark and string.sub(mark, 1, 5) == 'done:' then
      redis.call('XACK', KEYS[1], ARGV[1], id)
      if ARGV[5] == '1' then
        redis.call('XDEL', KEYS[1], id)
      end
      skipped[#skipped + 1] = id
      records[#records + 1] = ARGV[at + 2]
      records[#records + 1] = ARGV[at + 3]
    elseif mark and mark ~= own then
      busy[#busy + 1] = id
    elseif #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', ARGV[at + 1], 'JUSTID') == 0 then
      redis.call('DEL', KEYS[i])
      gone[#gone + 1] = id -- since 7.0 claiming what the stream has no more takes it off the pending list
    else
      redis.call('SET', KEYS[i], own, 'PX', ARGV[6])
    end
  end
end
if #records > 0 and ARGV[4] ~= '0' then
  -- pcall: at maxmemory the record is refused, and the skip must stand
  redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*',
    'group', ARGV[1], 'service', ARGV[3], 'consumer', ARGV[2], unpack(records))
end
return {lost, gone, skipped, busy}
