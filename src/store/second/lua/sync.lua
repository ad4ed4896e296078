-- What the log has after a reader's place, and whether the reader's place is in this log at all.
-- KEYS: meta, stream, names, instances, revoked keys. ARGV: epoch for a new log, the reader's epoch, position and
-- token, instance, most entries, milliseconds the log lives, the instance's own channel.
local meta, stream, names, instances = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local epoch, at = redis.call('HGET', meta, 'epoch'), tonumber(ARGV[3])
local position = tonumber(redis.call('HGET', meta, 'position') or '-1') or -1

-- Whether what is there is the log that the reader knows, and whole.
local is_broken = not epoch or position < 0
if not is_broken and position > 0 then
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  is_broken = not last or last[1] ~= position .. '-0'
end
local restarts = epoch ~= ARGV[2]
if not is_broken and not restarts and at > 0 then
  if at > position then
    is_broken = true
  else
    local known = redis.call('XRANGE', stream, at .. '-0', at .. '-0')[1]
    if not known then
      -- Compacted or trimmed since: too long ago to vouch for.
      restarts = true
    elseif known[2][2] ~= ARGV[4] then
      -- Nobody's entry, which readers pass over, has no token.
      is_broken = ARGV[4] ~= '0' or string.match(known[2][2] or '', '^%d+$') ~= nil
    end
  end
end
if is_broken then
  redis.call('DEL', meta, stream, names)
  epoch, position, restarts = ARGV[1], 0, true
  redis.call('HSET', meta, 'epoch', epoch, 'position', 0, 'floor', 0)
end
local entries = {}
if restarts then at = 0 end
if position > at then
  entries = redis.call('XRANGE', stream, (at + 1) .. '-0', '+', 'COUNT', ARGV[6])
  for _, entry in ipairs(entries) do
    local size = 0
    for _, text in ipairs(entry[2]) do size = size + #text end
    -- No instance has written so much: it is passed over, unread.
    if size > 131072 then entry[2] = {} end
  end
end
-- Who begins anew learns which keys are revoked now, whatever was trimmed.
local revoked = {}
if restarts then
  if redis.call('HLEN', KEYS[5]) > 100000 then
    return redis.error_reply('ERR more than 100,000 revoked keys: too many to be read')
  end
  for _, key in ipairs(redis.call('HKEYS', KEYS[5])) do
    -- A digest, and nothing else.
    if #key == 32 then table.insert(revoked, key) end
  end
end
local now = redis.call('TIME')[1]
-- A memory that is full must not keep an instance from reading: these may fail.
redis.pcall('HSET', instances, ARGV[5], now .. ' ' .. epoch .. ' ' .. string.format('%d', at))
redis.pcall('PUBLISH', ARGV[8], 'beat')
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[7]) end
return {epoch, position, redis.call('HGET', meta, 'floor'), restarts and 1 or 0, entries,
  revoked}
