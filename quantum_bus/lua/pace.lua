-- How fast a stream is written to and handled, by the newest of its entries, without sending them. Only reads.
-- KEYS[1] stream   KEYS[2] completion stream   ARGV[1] how many entries to look at, of each
-- Returns how many entries of the stream were looked at, the oldest one's id, the oldest completion entry's id, and group
-- and number of its records in turn. Ids are empty where there are none.
local function newest(key)
  local page = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', ARGV[1])
  return page['err'] and {} or page
end
local entries = newest(KEYS[1])
local records = newest(KEYS[2])
local counts = {}
local order = {}
for _, entry in ipairs(records) do
  local fields = entry[2]
  local group
  for i = 1, #fields, 2 do
    if fields[i] == 'group' then
      group = fields[i + 1]
      break
    end
  end
  if group then
    if not counts[group] then
      counts[group] = 0
      order[#order + 1] = group
    end
    counts[group] = counts[group] + math.max(0, #fields / 2 - 3) -- group, service and consumer are no records
  end
end
local told = {#entries, #entries > 0 and entries[#entries][1] or '', #records > 0 and records[#records][1] or ''}
for _, group in ipairs(order) do
  told[#told + 1] = group
  told[#told + 1] = counts[group]
end
return told
