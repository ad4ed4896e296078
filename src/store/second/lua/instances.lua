-- The instances that were heard within so many seconds: for each its name, seconds since, and up to where
-- it has applied which log. KEYS: instances. ARGV: seconds.
local all = redis.call('HGETALL', KEYS[1])
local now, alive = tonumber(redis.call('TIME')[1]), {}
for i = 1, #all, 2 do
  local seen, epoch, position = string.match(all[i + 1], '^(%d+) (%d+) (%d+)$')
  local silent = seen and now - tonumber(seen)
  if not silent or silent > tonumber(ARGV[1]) then
    redis.pcall('HDEL', KEYS[1], all[i])
  else
    for _, told in ipairs({all[i], string.format('%d', math.max(silent, 0)), epoch, position}) do
      table.insert(alive, told)
    end
  end
end
return alive
