-- Read what no consumer has had, if this consumer leads: so nothing is given to one that has lost the lease meanwhile.
-- KEYS[1] lease   KEYS[2..] streams, in the order in which they are read
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] how many at most
-- Returns nil where it does not lead; else {what XREADGROUP says of each stream that has something, and where nothing has
-- anything the last id that the group was given of each}.
if redis.call('GET', KEYS[1]) ~= ARGV[2] then
  return false
end
local left = tonumber(ARGV[3])
local read = {}
for i = 2, #KEYS do
  if left > 0 then
    local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', left, 'STREAMS', KEYS[i], '>')
    if reply and #reply > 0 then
      local entries = type(reply[1]) == 'table' and reply[1][2] or reply[2] -- fakeredis answers with a map, flattened
      read[#read + 1] = {KEYS[i], entries}
      left = left - #entries
    end
  end
end
local last = {}
if #read == 0 then
  for i = 2, #KEYS do
    for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[i])) do
      local group = {}
      for j = 1, #row, 2 do
        group[row[j]] = row[j + 1]
      end
      if group['name'] == ARGV[1] then
        last[#last + 1] = group['last-delivered-id']
      end
    end
  end
end
return {read, last}
