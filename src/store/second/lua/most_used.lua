-- What was used most, this hour and the last. KEYS: their lists. ARGV: most of each.
local all = {}
for _, key in ipairs(KEYS) do
  local listed = redis.call('ZREVRANGE', key, 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')
  for i = 1, #listed, 2 do
    -- No key is as long as this.
    if #listed[i] <= 131072 then
      table.insert(all, listed[i])
      table.insert(all, listed[i + 1])
    end
  end
end
return all
