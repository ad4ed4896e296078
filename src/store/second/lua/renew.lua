-- Keeps a lease whose fetch still runs. KEYS: lease. ARGV: token, milliseconds.
if redis.call('HGET', KEYS[1], 't') == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
