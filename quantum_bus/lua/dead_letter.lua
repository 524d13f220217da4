-- Copy an entry to the dead-letter stream, then acknowledge it: added first, so that no failure leaves it in neither.
-- KEYS[1] stream   KEYS[2] dead-letter stream
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] entry id   ARGV[4..] further fields, names and values in turn
-- Returns {'ok', new id}, {'lost'} where another consumer owns the entry, {'gone'} where the stream has it no more.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then
  return {'lost'}
end
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
if #found == 0 then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  return {'gone'}
end
local fields = found[1][2]
-- unpack() is bounded by Lua's C stack (8,000 values): an entry beyond that is kept whole in one field.
if #fields > 7000 then
  fields = {'dlq.packed', cmsgpack.pack(fields)}
end
for i = 4, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return {'ok', id}
