-- Make scheduled entries readable whose time has come.
-- KEYS[1] due times (sorted set)   KEYS[2] copies (hash)   KEYS[3] stream to add them to
-- ARGV[1] how many at most
-- Returns how many were moved, and the milliseconds until the next is due (-1: none is scheduled).
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local moved = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local packed = redis.call('HGET', KEYS[2], id)
  if packed then
    redis.call('XADD', KEYS[3], '*', unpack(unpacked(packed)))
  end
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  moved = moved + 1
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #first == 0 then
  return {moved, -1}
end
return {moved, math.max(0, tonumber(first[2]) - now)}
