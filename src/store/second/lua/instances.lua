-- The instances that were heard within so many seconds: for each its name, seconds since, and up to where
-- it has applied which log, and where its admin port is. KEYS: instances. ARGV: seconds.
if redis.call('HLEN', KEYS[1]) > 10000 then
  return redis.error_reply('ERR more than 10,000 instances: too many to be read')
end
local all = redis.call('HGETALL', KEYS[1])
local now, alive = tonumber(redis.call('TIME')[1]), {}
for i = 1, #all, 2 do
  local seen, epoch, position, admin
  -- Longer ones were written by no instance.
  if #all[i] <= 512 and #all[i + 1] <= 512 then
    seen, epoch, position, admin = string.match(all[i + 1], '^(%d+) (%d+) (%d+) ?(%S*)$')
  end
  local silent = seen and now - tonumber(seen)
  if not silent or silent > tonumber(ARGV[1]) then
    redis.pcall('HDEL', KEYS[1], all[i])
  else
    for _, told in ipairs({all[i], string.format('%d', math.max(silent, 0)), epoch, position, admin}) do
      table.insert(alive, told)
    end
  end
end
return alive
