-- Takes requests out of a sliding window: what the window before this one counted weighs as much as
-- of it is still within reach. The last tenth of a limit is given one by one; when it is reached,
-- whoever holds more than he has used is told to give it back.
-- A window that was lost goes on with what those who ask know to have been used of it.
-- KEYS: the window. ARGV: limit, milliseconds of a window, wanted, given back, when the window began
-- that it was taken from (0 for none), channel of recalls, what was used of it then.
local limit, length = tonumber(ARGV[1]), tonumber(ARGV[2])
local wanted, back = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local known = redis.call('HMGET', KEYS[1], 'began', 'before', 'count', 'recalled', 'lost')
local began, before = tonumber(known[1] or '-1'), tonumber(known[2] or '0')
local count, recalled = tonumber(known[3] or '0'), known[4] == '1'
local of, used_of, lost = tonumber(ARGV[5]), tonumber(ARGV[7]), known[5] == '1'
if began < 0 and of > 0 and of <= now and now < of + 2 * length then
  began, lost = of, true
end
if lost and of == began then
  count = math.max(count, used_of)
elseif lost and of == began - length then
  before = math.max(before, used_of)
end
-- A clock that was set back begins anew.
if began < 0 or now < began or now >= began + 2 * length then
  began, before, count, recalled, lost = now, 0, 0, false, false
elseif now >= began + length then
  began, before, count, recalled = began + length, count, 0, false
end
if back > 0 then
  if of == began then
    count = math.max(count - back, 0)
  elseif of == began - length then
    before = math.max(before - back, 0)
  end
end

local function used(at) return before * (1 - (at - began) / length) + count end
local free = math.floor(limit - used(now) + 1e-9)
local easy = free - math.ceil(limit / 10)
local granted = 0
if wanted > 0 and free > 0 then granted = math.max(1, math.min(wanted, easy)) end
count = count + granted
if granted > 1 then recalled = false end
if not recalled and easy - granted <= 0 and wanted + back > 0 then
  recalled = true
  redis.call('PUBLISH', ARGV[6], KEYS[1])
end
redis.call('HSET', KEYS[1], 'began', began, 'before', before, 'count', count,
  'recalled', recalled and '1' or '0', 'lost', lost and '1' or '0')
redis.call('PEXPIRE', KEYS[1], began + 2 * length - now)

-- When one more is free: in this window as the one before fades, or in the next as this one does.
local retry = 0
if granted == 0 and free <= 0 then
  local over = used(now) - (limit - 1)
  if before > 0 and count <= limit - 1 then
    retry = over / before * length
  else
    retry = began + length - now + math.max(0, 1 - (limit - 1) / math.max(count, 1)) * length
  end
end
local left = math.max(0, math.floor(limit - used(now) + 1e-9))
return {granted, left, math.ceil(retry), began + length - now, string.format('%d', began)}
