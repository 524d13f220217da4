-- Make a group: one that was there before where it had come to by the last note, never past what it may not have handled.
-- What the notes say of a stream that is gone, or is younger than they are, does not count.
-- KEYS[1] stream   KEYS[2] notes of upkeep.lua   ARGV[1] group   ARGV[2] where it starts else
-- Returns where it starts.
local start = ARGV[2]
local low = redis.call('HGET', KEYS[2], 'low:' .. ARGV[1])
if low and #redis.call('XREVRANGE', KEYS[1], '+', low, 'COUNT', 1) == 1 then
  start = low
end
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], start, 'MKSTREAM')
if made['err'] then
  return made
end
return start
