-- A value, or else the lease of its key, unless it is not wanted: one instance leads, the others are told when it is done.
-- KEYS: value, lease. ARGV: wanted ("value", "alone", or "lease" where a value is of no use),
-- generation (of a variant, else ""), token, lease milliseconds, instance, position in the purge
-- log, token of a lease to be taken over (else ""), how the value of no use begins (else ""), most
-- bytes of a value. That one is not sent again, unless another has taken its place meanwhile.
-- What is larger than any value, or none at all, is sent as nothing that can be read.
local length = redis.pcall('STRLEN', KEYS[1])
local is_value = type(length) == 'number' and length <= tonumber(ARGV[9])
if ARGV[1] ~= 'lease' and not is_value then return {'value', ARGV[2]} end
if is_value and (ARGV[1] ~= 'lease' or redis.call('GETRANGE', KEYS[1], 0, 23) ~= ARGV[8]) then
  local value = redis.call('GET', KEYS[1])
  if value and (ARGV[2] == '' or string.sub(value, 1, 8) == ARGV[2]) then
    return {'value', value}
  end
end
if ARGV[1] == 'alone' then return {'nothing'} end
local held = redis.call('HGET', KEYS[2], 't')
if not held or #held > 20 or held == ARGV[7] then
  redis.call('HSET', KEYS[2], 't', ARGV[3], 'p', ARGV[6])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  return {'lead'}
end
redis.call('HSET', KEYS[2], 'w' .. ARGV[5], '1')
return {'wait', held, string.sub(redis.call('HGET', KEYS[2], 'p') or '', 1, 20), redis.call('PTTL', KEYS[2])}
