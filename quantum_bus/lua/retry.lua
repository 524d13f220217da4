-- Schedule an entry for another attempt of this group: a copy is kept under its message's id, then it is acknowledged.
-- KEYS[2] due times (sorted set)   KEYS[3] copies (hash)   KEYS[4] completion stream
-- KEYS[5] mark of the message; none where the group keeps no marks
-- ARGV[9] delay, milliseconds   ARGV[10..] further fields, names and values in turn
-- Returns {'ok', due}, {'wide'} where the entry has more values than due.lua could add again, or what move.lua says.
local fields, refusal = fields_of_owned(KEYS[5])
if not fields then
  return refusal
end
if #fields > 7000 then -- unpack() is bounded by Lua's C stack, at 8,000 values
  return {'wide'}
end
for i = 10, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
local time = redis.call('TIME')
local due = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[9])
redis.call('HSET', KEYS[3], ARGV[7], pack(fields))
redis.call('ZADD', KEYS[2], due, ARGV[7])
settle(KEYS[4])
return {'ok', tostring(due)}
