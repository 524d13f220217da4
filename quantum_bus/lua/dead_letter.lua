-- Copy an entry to the dead-letter stream, then acknowledge it: added first, so that no failure leaves it in neither.
-- KEYS[1] stream   KEYS[2] dead-letter stream   KEYS[3] completion stream
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] entry id   ARGV[4] values to cut off its end (a retry's own)
-- ARGV[5] service   ARGV[6] completion entries to keep, 0 for none   ARGV[7] message's id   ARGV[8] record
-- ARGV[9..] further fields, names and values in turn
-- Returns {'ok', new id}, {'lost'} where another consumer owns the entry, {'absent'} where it is not
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
-- unpack() is bounded by Lua's C stack (8,000 values): an entry beyond that is kept whole in one field.
if #fields > 7000 then
  fields = {'dlq.packed', pack(fields)}
end
for i = 9, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
if cut > 0 then
  redis.call('XDEL', KEYS[1], ARGV[3])
end
if ARGV[6] ~= '0' then
  redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], '*',
    'group', ARGV[1], 'service', ARGV[5], 'consumer', ARGV[2], ARGV[7], ARGV[8])
end
return {'ok', id}
