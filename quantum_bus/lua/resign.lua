-- Give the group's lease up, if it is this consumer's: any other may take it at once.
-- KEYS[1] lease   ARGV[1] consumer   ARGV[2] milliseconds that a lease lasts
-- Returns 1 if it was this consumer's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if redis.pcall('SET', KEYS[1], ARGV[1] .. ' (resigned)', 'PX', ARGV[2])['err'] then
  redis.call('DEL', KEYS[1]) -- at maxmemory it could not say who has resigned
end
return 1
