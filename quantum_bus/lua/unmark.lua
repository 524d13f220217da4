-- Take back the mark of an entry that is deleted, so that another one under its message's id may be handled.
-- KEYS[1] mark   ARGV[1] the message's id that it is for
if redis.call('GET', KEYS[1]) == 'run:' .. ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
