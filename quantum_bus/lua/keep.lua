-- Renew the lease of an entry, if this consumer still owns it.
-- KEYS[1] stream   ARGV[1] group   ARGV[2] consumer   ARGV[3] entry id
-- Returns 1, or 0 where another consumer owns it. JUSTID leaves the delivery count alone.
if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then
  return 0
end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
return 1
