-- Add an entry at once, or keep it until it is due; and only once in a window, where there is one.
-- KEYS[1] stream   KEYS[2] due times (sorted set)   KEYS[3] copies (hash)   KEYS[4] marker, only where there is a window
-- ARGV[1] message's id   ARGV[2] delay, milliseconds, 0 for none   ARGV[3] window, milliseconds, 0 for none
-- ARGV[4] correlation id
-- ARGV[5..] fields, names and values in turn; never as many as unpack() could not take (envelope.MAX_HEADERS)
-- Returns the entry's id, empty where it is kept for later, a blank and the correlation id; where the message is there
-- already, of the first call: within the window what that one returned.
-- What is there already is written again as it was: a WAIT behind this call then waits for what the first one wrote. No
-- first write here is one that a full server lets through while the next is refused: all is done, or nothing.
local function correlation_id(copy)
  local fields = unpacked(copy)
  for i = 1, #fields, 2 do
    if fields[i] == 'correlation_id' then
      return fields[i + 1]
    end
  end
end
local flow = ARGV[4]
if KEYS[4] then
  local first = redis.call('GET', KEYS[4])
  if first then
    local left = redis.call('PTTL', KEYS[4])
    redis.call('PEXPIRE', KEYS[4], left > 0 and left or ARGV[3])
    return first
  end
end
local id = ''
if ARGV[2] == '0' then
  id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 5))
else
  redis.call('XLEN', KEYS[1]) -- a key that is no stream refuses it now, not when it is due
  local due = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if due then -- the first call stands
    redis.call('ZREM', KEYS[2], ARGV[1])
    redis.call('ZADD', KEYS[2], due, ARGV[1])
    flow = correlation_id(redis.call('HGET', KEYS[3], ARGV[1]) or '') or flow
  else
    local time = redis.call('TIME')
    due = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
    redis.call('HSET', KEYS[3], ARGV[1], pack({unpack(ARGV, 5)}))
    redis.call('ZADD', KEYS[2], due, ARGV[1])
  end
end
local receipt = id .. ' ' .. flow
if KEYS[4] then
  redis.call('SET', KEYS[4], receipt, 'PX', ARGV[3])
end
return receipt
