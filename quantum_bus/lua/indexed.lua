end
local function behind(values, first)
  local rest = {}
  for i = first, #values do
    rest[#rest + 1] = values[i]
  end
  return rest
end
local receipt = publish(behind(KEYS, 2), behind(ARGV, 5))
local id, flow = string.match(receipt, '^(%S*) (.*)$')
if flow == ARGV[1] then -- else the window's first publish was of another flow, which has noted it
  if id == '' then
    id = '~' .. ARGV[2] -- its entry's id comes later
  end
  -- pcall: a key of another type must not undo a publish. At maxmemory this is allowed, because the entry is written.
  local noted = redis.pcall('HGET', KEYS[1], ARGV[1])
  if type(noted) ~= 'string' then
    redis.pcall('HSET', KEYS[1], ARGV[1], id)
    if redis.call('PTTL', KEYS[1]) < 0 then
      redis.call('PEXPIRE', KEYS[1], ARGV[3])
    end
  elseif not string.find(' ' .. noted .. ' ', ' ' .. id .. ' ', 1, true) then
    if #noted < tonumber(ARGV[4]) then
      redis.pcall('HSET', KEYS[1], ARGV[1], noted .. ' ' .. id)
    elseif string.sub(noted, -3) ~= '...' then
      redis.pcall('HSET', KEYS[1], ARGV[1], noted .. ' ...')
    end
  end
end
return receipt
