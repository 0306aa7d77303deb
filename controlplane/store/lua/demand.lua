-- most adapters, limits JSON
-- -> {now (demand clock, ms), who predicts or "", {{identity, name@version, logarithms by half-life,
--   {identity, logarithm, ...} of what follows, {identity, name@version, ...} of these}, ...}
--   the most asked for first, {"data plane identity", prediction JSON, name@version, ...},
--   {what:kind, count, ...}}
local limit, limits = tonumber(ARGV[1]), cjson.decode(ARGV[2])
local function named(identities)
  local names = {}
  for _, identity in ipairs(identities) do
    table.insert(names, identity)
    table.insert(names, demanded(identity) or "")
  end
  return names
end
local adapters = {}
for _, identity in ipairs(redis.call("ZREVRANGE", DEMAND .. 2, 0, limit + 63)) do
  if #adapters >= limit then break end
  local name = demanded(identity)
  if name then
    local scores = {}
    for i = 1, 3 do scores[i] = redis.call("ZSCORE", DEMAND .. i, identity) or "-inf" end
    local followers = redis.call("ZREVRANGE", FOLLOWERS .. identity, 0, -1, "WITHSCORES")
    local following = {}
    for i = 1, #followers, 2 do table.insert(following, followers[i]) end
    table.insert(adapters, {identity, name, scores, followers, named(following)})
  end
end
local predictions = {}
if limit > 0 then
  local open = redis.call("HGETALL", PREDICTIONS)
  for i = 1, #open, 2 do
    local identity = string.match(open[i], "^[^ ]* (.*)$")
    table.insert(predictions, open[i])
    table.insert(predictions, open[i + 1])
    table.insert(predictions, demanded(identity) or "")
  end
end
-- Nothing is written: who looks must be answered where Redis takes no writes, too.
local t = demand_time(limits.max_step_ms)
return {integer(t), redis.call("GET", PREDICTOR) or "", adapters,
  predictions, redis.call("HGETALL", PREDICTION_SCORES)}
