-- Copy an entry to the dead-letter stream, then acknowledge it: added first, so that no failure leaves it in neither.
-- KEYS[2] dead-letter stream   KEYS[3] completion stream   KEYS[4] mark of the message; none where the group keeps no marks
-- ARGV[9..] further fields, names and values in turn
-- Returns {'ok', new id}, or what move.lua says.
local fields, refusal = fields_of_owned(KEYS[4])
if not fields then
  return refusal
end
-- unpack() is bounded by Lua's C stack (8,000 values): an entry beyond that is kept whole in one field.
if #fields > 7000 then
  fields = {'dlq.packed', pack(fields)}
end
for i = 9, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
settle(KEYS[3])
unmark(KEYS[4])
return {'ok', id}
