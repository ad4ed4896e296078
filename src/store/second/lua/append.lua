-- Appends purges to the log and tells the fleet. The last WINDOW entries stand as they came; what
-- leaves the window is compacted: of each name the latest stays, and of soft ones the first too, by
-- which grace is reckoned. Past MOST the oldest go, and the floor says up to where.
-- Words on keys stand in a hash beside it too: those that are revoked must not be trimmed away.
-- KEYS: meta, stream, names, revoked keys. ARGV: epoch of the log that is meant, channel, window, most,
-- milliseconds the log lives, then for each purge: token, mode, at, kind, value, reach, reach's value.
-- Answers whether they are in, and how many replicas the server has.
local meta, stream, names = KEYS[1], KEYS[2], KEYS[3]
local window, most = tonumber(ARGV[3]), tonumber(ARGV[4])

-- What was evicted or lost in part is not a log, and another one is not meant: whoever looks next begins one,
-- or goes on with it.
local known = redis.call('HMGET', meta, 'epoch', 'position')
local position = tonumber(known[2] or '-1') or -1
if known[1] ~= ARGV[1] or position < 0 then return {0, 0} end
if position > 0 then
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not last or last[1] ~= position .. '-0' then return {0, 0} end
end

local function entry_at(at)
  local found = redis.call('XRANGE', stream, at .. '-0', at .. '-0')[1]
  return found and found[2]
end
-- Fields stand in the order in which they are added below.
local function name_of(fields)
  return table.concat({fields[4], fields[8], fields[10], fields[12], fields[14]}, '\0')
end
local function compact(at)
  local fields = entry_at(at)
  if not fields then return end
  local name = name_of(fields)
  local known = redis.call('HGET', names, name)
  local first, latest
  if known then first, latest = string.match(known, '(%d+) (%d+)') end
  if fields[4] == 'soft' then
    if latest and latest ~= first then redis.call('XDEL', stream, latest .. '-0') end
    redis.call('HSET', names, name, (first or at) .. ' ' .. at)
  else
    if latest then redis.call('XDEL', stream, latest .. '-0') end
    redis.call('HSET', names, name, at .. ' ' .. at)
  end
end
local function trim()
  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local at = string.match(oldest[1], '%d+')
  local name = name_of(oldest[2])
  local known = redis.call('HGET', names, name)
  if known then
    local first, latest = string.match(known, '(%d+) (%d+)')
    if latest == at then
      redis.call('HDEL', names, name)
    elseif first == at then
      redis.call('HSET', names, name, latest .. ' ' .. latest)
    end
  end
  redis.call('XDEL', stream, oldest[1])
  redis.call('HSET', meta, 'floor', at)
end

for i = 6, #ARGV, 7 do
  position = position + 1
  redis.call('XADD', stream, position .. '-0', 'token', ARGV[i], 'mode', ARGV[i + 1],
    'at', ARGV[i + 2], 'kind', ARGV[i + 3], 'value', ARGV[i + 4], 'reach', ARGV[i + 5],
    'of', ARGV[i + 6])
  if ARGV[i + 3] == 'key' then
    if ARGV[i + 1] == 'hard' then
      redis.call('HSET', KEYS[4], ARGV[i + 4], 1)
    else
      redis.call('HDEL', KEYS[4], ARGV[i + 4])
    end
  end
  if position > window then compact(string.format('%d', position - window)) end
  if redis.call('XLEN', stream) > most then trim() end
end
redis.call('HSET', meta, 'position', position)
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[5]) end
redis.call('PUBLISH', ARGV[2], position)
local info = redis.pcall('INFO', 'replication')
return {1, tonumber(type(info) == 'string' and string.match(info, 'connected_slaves:(%d+)') or '0')}
