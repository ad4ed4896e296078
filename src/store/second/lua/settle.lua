-- Stores what a fetch brought, and ends its lease with an outcome.
-- KEYS: lease, value, record of variants. ARGV: token (else ""), outcome, beginning of the
-- instances' channels, kind ("none", "plain" or "variant"), value, milliseconds it lives, record of
-- variants without its generation, generation for a new record.
if ARGV[4] == 'plain' then
  redis.call('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])
elseif ARGV[4] == 'variant' then
  -- "V", the generation, the names: of the same names it stays, so that other variants do too.
  local record = redis.call('GET', KEYS[3])
  local generation = ARGV[8]
  if record and string.sub(record, 1, 1) == 'V' and string.sub(record, 10) == ARGV[7] then
    generation = string.sub(record, 2, 9)
    if redis.call('PTTL', KEYS[3]) < tonumber(ARGV[6]) then
      redis.call('PEXPIRE', KEYS[3], ARGV[6])
    end
  else
    redis.call('SET', KEYS[3], 'V' .. generation .. ARGV[7], 'PX', ARGV[6])
  end
  redis.call('SET', KEYS[2], generation .. ARGV[5], 'PX', ARGV[6])
end
if ARGV[1] ~= '' and redis.call('HGET', KEYS[1], 't') == ARGV[1] then
  local fields = redis.call('HKEYS', KEYS[1])
  redis.call('DEL', KEYS[1])
  for _, field in ipairs(fields) do
    if string.sub(field, 1, 1) == 'w' then
      redis.call('PUBLISH', ARGV[3] .. string.sub(field, 2), KEYS[1] .. ' ' .. ARGV[2])
    end
  end
end
return 1
