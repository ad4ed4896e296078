-- How many instances are alive, and how many of them have applied the log up to a position.
-- KEYS: instances. ARGV: epoch, position, seconds after which an unheard instance is taken for gone.
local all = redis.call('HGETALL', KEYS[1])
local now, alive, applied = tonumber(redis.call('TIME')[1]), 0, 0
for i = 1, #all, 2 do
  local seen, epoch, position = string.match(all[i + 1], '(%d+) (%d+) (%d+)')
  if not seen or now - tonumber(seen) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    alive = alive + 1
    if epoch == ARGV[1] and tonumber(position) >= tonumber(ARGV[2]) then applied = applied + 1 end
  end
end
return {applied, alive}
