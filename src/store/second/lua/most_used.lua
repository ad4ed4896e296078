-- What was used most, this hour and the last. KEYS: their lists. ARGV: most of each.
local all = {}
for _, key in ipairs(KEYS) do
  for _, word in ipairs(redis.call('ZREVRANGE', key, 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')) do
    table.insert(all, word)
  end
end
return all
