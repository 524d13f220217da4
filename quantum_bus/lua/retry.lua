-- Schedule an entry for another attempt of this group: a copy is kept under its message's id, then it is acknowledged.
-- KEYS[1] stream   KEYS[2] due times (sorted set)   KEYS[3] copies (hash)   KEYS[4] completion stream
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] entry id   ARGV[4] values to cut off its end (the last retry's own)
-- ARGV[5] service   ARGV[6] completion entries to keep, 0 for none   ARGV[7] message's id   ARGV[8] record
-- ARGV[9] delay, milliseconds   ARGV[10..] further fields, names and values in turn
-- Returns {'ok', due}, {'lost'} where another consumer owns the entry, {'absent'} where it is not
-- pending at all, {'gone'} where the stream has it no more.
local function pack(values) -- as netstrings (length, colon, bytes): cmsgpack is not on every server
  local parts = {}
  for i, value in ipairs(values) do
    parts[i] = #value .. ':' .. value
  end
  return table.concat(parts)
end
local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not row then
  return {'absent'}
end
if row[2] ~= ARGV[2] then
  return {'lost'}
end
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
if #found == 0 then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  return {'gone'}
end
local fields = found[1][2]
local cut = tonumber(ARGV[4])
for _ = 1, cut do
  fields[#fields] = nil
end
for i = 10, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
local time = redis.call('TIME')
local due = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[9])
redis.call('HSET', KEYS[3], ARGV[7], pack(fields))
redis.call('ZADD', KEYS[2], due, ARGV[7])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
if cut > 0 then
  redis.call('XDEL', KEYS[1], ARGV[3])
end
if ARGV[6] ~= '0' then
  redis.pcall('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*',
    'group', ARGV[1], 'service', ARGV[5], 'consumer', ARGV[2], ARGV[7], ARGV[8])
end
return {'ok', tostring(due)}
