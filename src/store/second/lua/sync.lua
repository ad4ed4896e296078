-- What the log has after a reader's place, and whether the reader's place is in this log at all.
-- KEYS: meta, stream, names, instances, revoked keys. ARGV: epoch for a new log, the reader's epoch, position and
-- token, instance, most entries, milliseconds the log lives, the instance's own channel, the logs before the
-- reader's, whether the instance serves ("1", or "0" for one that says goodbye), where its admin port is.
local meta, stream, names, instances = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local known = redis.call('HMGET', meta, 'epoch', 'position', 'before', 'run')
local epoch, position, before = known[1], tonumber(known[2] or '-1') or -1, string.sub(known[3] or '', 1, 2048)
local at = tonumber(ARGV[3])

-- What a server has loaded from its disk, or has from a master that is gone, may be older than what
-- was said. It has another id then than whoever vouched for the log last.
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''

local function is_among(wanted, list)
  return string.find(' ' .. list .. ' ', ' ' .. wanted .. ' ', 1, true) ~= nil
end

-- Whether an instance has written an entry: its first field is a token, 64 bits as Rust writes them, and it is
-- no larger than any purge. Nobody's entry is passed over, by all alike.
local function is_written(fields)
  local token, size = fields[2] or '', 0
  for _, text in ipairs(fields) do size = size + #text end
  local is_number = token == '0' or string.match(token, '^[1-9]%d*$')
  local fits = #token < 20 or (#token == 20 and token <= '18446744073709551615')
  return fields[1] == 'token' and is_number and fits and size <= 131072
end

-- Whether what is there is a log, and whole.
local is_broken = not epoch or #epoch > 20 or position < 0
if not is_broken and position > 0 then
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  is_broken = not last or last[1] ~= position .. '-0'
end
local restarts, vouches = epoch ~= ARGV[2], false
if not is_broken then
  if restarts then
    -- One that knows nothing of the reader's is no successor of it: it is of another age.
    is_broken = ARGV[2] ~= '0' and not is_among(ARGV[2], before)
  elseif at > position then
    is_broken = true
  elseif at == 0 then
    vouches = true
  else
    local entry = redis.call('XRANGE', stream, at .. '-0', at .. '-0')[1]
    if not entry then
      -- Compacted or trimmed since: too long ago to vouch for.
      restarts = true
    else
      -- Of nobody's entry a reader remembers no token.
      local token = is_written(entry[2]) and entry[2][2] or '0'
      vouches = token == ARGV[4]
      is_broken = not vouches
    end
  end
  -- Who does not know the log cannot tell that this server has lost some of it.
  if not is_broken and (known[4] or '') ~= run then
    if vouches then redis.pcall('HSET', meta, 'run', run) else is_broken = true end
  end
end
if is_broken then
  local list, count = '', 0
  local function add(one)
    if one ~= '0' and not is_among(one, list) and count < 64 then
      list, count = list .. ' ' .. one, count + 1
    end
  end
  for _, some in ipairs({epoch or '0', ARGV[2], before, ARGV[9]}) do
    for one in string.gmatch(some, '%d+') do add(one) end
  end
  redis.call('DEL', meta, stream, names)
  epoch, position, restarts, before = ARGV[1], 0, true, string.sub(list, 2)
  redis.call('HSET', meta, 'epoch', epoch, 'position', 0, 'floor', 0, 'before', before, 'run', run)
end
local entries = {}
if restarts then at = 0 end
if position > at then
  entries = redis.call('XRANGE', stream, (at + 1) .. '-0', '+', 'COUNT', ARGV[6])
  for _, entry in ipairs(entries) do
    if not is_written(entry[2]) then entry[2] = {} end
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
-- A memory that is full must not keep an instance from reading: these may fail.
if ARGV[10] == '1' then
  local now = redis.call('TIME')[1]
  redis.pcall('HSET', instances, ARGV[5], now .. ' ' .. epoch .. ' ' .. string.format('%d', at) .. ' ' .. ARGV[11])
else
  redis.pcall('HDEL', instances, ARGV[5])
end
redis.pcall('PUBLISH', ARGV[8], 'beat')
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[7]) end
return {epoch, position, redis.call('HGET', meta, 'floor'), restarts and 1 or 0, entries,
  revoked, before, redis.call('HLEN', instances)}
