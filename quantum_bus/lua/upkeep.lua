-- Note how far each group has come, and free what all of them have handled but for what is to be kept; never more.
-- KEYS[1] stream   KEYS[2] notes (hash): each group's low-water mark, and two counts   KEYS[3] marks (sorted set): ids, by rank
-- ARGV[1] handled entries to keep, -1 to free nothing   ARGV[2] entries between two marks, at least
-- ARGV[3] marks to have at most   ARGV[4] entries to look at where there is no mark   ARGV[5] entries to free at most
-- ARGV[6] seconds for which a group that vanished holds back what it had not handled
-- Returns how many were freed, 1 where more can be, how many are left, and the group that has come least far.
--
-- An id does not tell how many entries stand before it, so marks do: ids with their rank, the number of entries ever added up
-- to them. What is freed lies below a mark or an entry that was compared by its id with what each group still needs: where
-- a rank is wrong (entries that others deleted), more or less is kept, and nothing is lost.
-- pcall: at maxmemory notes are refused, and freeing goes on.
local function parts(id)
  local dash = string.find(id, '-', 1, true)
  return string.sub(id, 1, dash - 1), string.sub(id, dash + 1)
end

local function below(a, b) -- of two numbers in digits: both parts may exceed what Lua's numbers can tell apart
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end

local function before(a, b)
  local ms, seq = parts(a)
  local other_ms, other_seq = parts(b)
  if ms ~= other_ms then
    return below(ms, other_ms)
  end
  return below(seq, other_seq)
end

local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
local present = {}
local needed, slowest -- the first id that some group may still need, and that group
for _, row in ipairs(groups) do
  local group = {}
  for i = 1, #row, 2 do
    group[row[i]] = row[i + 1]
  end
  local low, first = group['last-delivered-id'], group['last-delivered-id']
  local oldest = redis.call('XPENDING', KEYS[1], group['name'], '-', '+', 1)[1]
  if oldest then
    first = oldest[1]
    local previous = redis.call('XREVRANGE', KEYS[1], '(' .. first, '-', 'COUNT', 1)[1]
    low = previous and previous[1] or '0-0'
  end
  present[group['name']] = true
  redis.pcall('HSET', KEYS[2], 'low:' .. group['name'], low)
  if not needed or before(first, needed) then
    needed, slowest = first, group['name']
  end
end

-- what was a group's is kept for it for a while, where it vanished: it is made again at its mark (group.lua)
local now = tonumber(redis.call('TIME')[1])
local noted = redis.call('HGETALL', KEYS[2])
local vanished = {}
for i = 1, #noted, 2 do
  local group = string.match(noted[i], '^low:(.*)$')
  if group and present[group] then
    redis.call('HDEL', KEYS[2], 'gone:' .. group)
  elseif group then
    vanished[group] = noted[i + 1]
  end
end
for group, low in pairs(vanished) do
  local since = redis.call('HGET', KEYS[2], 'gone:' .. group)
  if since and now - tonumber(since) > tonumber(ARGV[6]) then
    redis.call('HDEL', KEYS[2], 'low:' .. group, 'gone:' .. group)
  else
    if not since then
      redis.pcall('HSET', KEYS[2], 'gone:' .. group, now)
    end
    if needed and before(low, needed) then
      needed, slowest = low, group
    end
  end
end

local length = redis.call('XLEN', KEYS[1])
local keep = tonumber(ARGV[1])
if not needed or keep < 0 or length == 0 then
  return {0, 0, length, slowest or ''}
end

-- rank the newest entry
local notes = redis.call('HMGET', KEYS[2], 'total', 'length')
local total = tonumber(notes[1] or 0) + math.max(0, length - tonumber(notes[2] or 0))
local freed_before = total - length
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]
local marks = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
local count = #marks / 2
if count == 0 or total - tonumber(marks[#marks]) >= tonumber(ARGV[2]) then
  if count >= tonumber(ARGV[3]) then
    redis.call('ZREMRANGEBYRANK', KEYS[3], -1, -1)
  end
  redis.pcall('ZADD', KEYS[3], total, newest)
  marks[#marks + 1], marks[#marks + 2] = newest, total
end

-- how many are handled at least, and the newest mark that has as many to be kept behind it
local handled = before(newest, needed) and total or newest == needed and total or 0
for i = #marks - 1, 1, -2 do
  if handled == 0 and not before(needed, marks[i]) then
    handled = tonumber(marks[i + 1])
  end
end
local excess = handled - freed_before - keep
local upto
for i = #marks - 1, 1, -2 do
  if not upto and tonumber(marks[i + 1]) <= handled - keep and not before(needed, marks[i]) then
    upto = marks[i]
  end
end

local freed = 0
local function free(id)
  freed = freed + redis.call('XTRIM', KEYS[1], 'MINID', '~', id, 'LIMIT', ARGV[5])
end
if excess > 0 and upto then
  free(upto)
end
if freed == 0 and excess >= tonumber(ARGV[4]) then -- a burst between two marks: go by its entries
  local page = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[4])
  local last = page[#page][1]
  if not before(needed, last) then
    free(last)
  end
end
redis.pcall('HSET', KEYS[2], 'total', total, 'length', length - freed)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', freed_before + freed)
local more = freed > 0 and excess - freed >= tonumber(ARGV[4])
return {freed, more and 1 or 0, length - freed, slowest}
