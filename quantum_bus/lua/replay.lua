-- Give a dead letter back: its message is added where it goes, then it is deleted. Added first, so that a refusal (out of
-- memory, a key of another type) leaves it where it is; in one step, so that no death leaves it in both or in neither.
-- KEYS[1] dead-letter stream   KEYS[2] stream to add it to   KEYS[3] stream whose group it is for
-- ARGV[1] dead letter's id   ARGV[2] how many of its values are the message's own, from the first on
-- ARGV[3] group that must be there, or ''   ARGV[4..] further fields, names and values in turn
-- Returns {'ok', new id}, {'gone'} where it is no dead letter any more, {'no group'}
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
if #found == 0 then
  return {'gone'}
end
if ARGV[3] ~= '' then
  local known = false
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[3]) -- an error where there is no such stream
  for _, group in ipairs(groups) do
    known = known or group[2] == ARGV[3]
  end
  if not known then
    return {'no group'}
  end
end
local fields = {}
for i = 1, tonumber(ARGV[2]) do -- copied here, byte for byte: fields of one name stay two
  fields[i] = found[1][2][i]
end
for i = 4, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
redis.call('XDEL', KEYS[1], ARGV[1])
return {'ok', id}
