-- Count the entries that a group was not given yet, without sending them: from where it stands to the end of the stream, or,
-- where that is far, from the beginning of the stream to there. Only reads.
-- KEYS[1] stream   ARGV[1] the group's last delivered id   ARGV[2] how many to count at most, each way
-- Returns how many there are; nil where both ways are longer.
local limit = tonumber(ARGV[2])
local function count(first, last) -- a page at a time: the entries of a page are in memory, whatever their size
  local counted = 0
  while counted <= limit do
    local page = redis.call('XRANGE', KEYS[1], first, last, 'COUNT', 100)
    if #page == 0 then
      return counted
    end
    counted = counted + #page
    first = '(' .. page[#page][1]
  end
end
local ahead = count('(' .. ARGV[1], '+')
if ahead then
  return ahead
end
local behind = count('-', ARGV[1])
return behind and redis.call('XLEN', KEYS[1]) - behind
