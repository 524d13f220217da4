-- Note a failed run of an entry that stays pending with this consumer until its next one, if it still owns it.
-- KEYS[1] stream   KEYS[2] completion stream
-- ARGV[1] group   ARGV[2] consumer   ARGV[3] entry id   ARGV[4] service   ARGV[5] completion entries to keep, 0 for none
-- ARGV[6] message's id   ARGV[7] record
-- Returns {'ok'}; {'lost'} where it is not this consumer's any more; {'gone'} where the stream has it no more: then it is
-- acknowledged, because nothing can be done for it.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then
  return {'lost'}
end
if #redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3]) == 0 then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
  return {'gone'}
end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
if ARGV[5] ~= '0' then
  -- pcall: at maxmemory the record is refused, and the run must count
  redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*',
    'group', ARGV[1], 'service', ARGV[4], 'consumer', ARGV[2], ARGV[6], ARGV[7])
end
return {'ok'}
