-- Counts uses in this hour's list, of which the most used stay.
-- KEYS: list. ARGV: most, milliseconds it lives, then for each response: its key, uses.
for i = 3, #ARGV, 2 do
  redis.call('ZINCRBY', KEYS[1], ARGV[i + 1], ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -tonumber(ARGV[1]) - 1)
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
