-- What retry.lua and dead_letter.lua, which this is put before, have in common.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3] entry id   ARGV[4] values to cut off its end: a
-- retry's own, 0 in the stream itself, below 0 for what is no retry and among them
-- ARGV[5] service   ARGV[6] completion entries to keep, 0 for none   ARGV[7] message's id   ARGV[8] record
-- Where the group keeps marks: another entry under the message's id may be handled now.
local function unmark(mark)
  if mark and redis.call('GET', mark) == 'run:' .. ARGV[7] then
    redis.call('DEL', mark)
  end
end

-- The message's own fields; or nil, and {'lost'} where another consumer owns the entry, {'absent'} where it is not pending
-- at all, {'gone'} where the stream has it no more: then it is acknowledged, because nothing can be done for it.
local function fields_of_owned(mark)
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
  if not row then
    return nil, {'absent'}
  end
  if row[2] ~= ARGV[2] then
    return nil, {'lost'}
  end
  local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
  if #found == 0 then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
    unmark(mark)
    return nil, {'gone'}
  end
  local fields = found[1][2]
  for _ = 1, tonumber(ARGV[4]) do
    fields[#fields] = nil
  end
  return fields
end

-- After the message is where it goes: take it off the pending list, and note its completion in `completed`.
local function settle(completed)
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  if tonumber(ARGV[4]) ~= 0 then
    redis.call('XDEL', KEYS[1], ARGV[3])
  end
  if ARGV[6] ~= '0' then
    -- pcall: at maxmemory the record is refused, and the move must stand
    redis.pcall('XADD', completed, 'MAXLEN', '~', ARGV[6], '*',
      'group', ARGV[1], 'service', ARGV[5], 'consumer', ARGV[2], ARGV[7], ARGV[8])
  end
end

