-- who asks, limits JSON, JSON {{data plane, identity, directive JSON, kind, tier, bytes, horizon_ms,
--   whether it must hold it already}, ...}, JSON {{data plane, debt, its time}, ...}
-- -> {{"data plane identity", ...} of those who are told}, or {} when another control plane predicts now
local me, limits, asks, debts = ARGV[1], cjson.decode(ARGV[2]), cjson.decode(ARGV[3]), cjson.decode(ARGV[4])
if redis.call("GET", PREDICTOR) ~= me then return {} end
local t = demand_now(limits.max_step_ms)
for _, debt in ipairs(debts) do
  if redis.call("EXISTS", DATA_PLANE .. debt[1]) == 1 then
    redis.call("HSET", DATA_PLANE .. debt[1], "prefetch_debt", integer(debt[2]),
      "prefetch_debt_ms", integer(debt[3]))
  end
end
local told = {}
for _, ask in ipairs(asks) do
  local id, identity, json, kind, tier, size_bytes, horizon_ms, must_hold = unpack(ask)
  local digest, base = string.match(identity, "^([^:]*):(.*)$")
  local field = id .. " " .. identity
  local goes = redis.call("HGET", DATA_PLANE .. id, "base_model") == base
    and redis.call("HEXISTS", PREDICTIONS, field) == 0
    and redis.call("ZCARD", PREDICTION_ENDS) < limits.max_predictions
    and redis.call("ZCARD", DIRECTIVES .. id) < limits.max_waiting
  if goes and must_hold then
    goes = redis.call("SISMEMBER", RESIDENCY_POOL .. id, digest) == 1
      or redis.call("SISMEMBER", RESIDENCY_HOST .. id, digest) == 1
      or redis.call("SISMEMBER", RESIDENCY_DISK .. id, digest) == 1
  end
  if goes then
    tell(id, json)
    note_prediction(id, identity, {state = "open", kind = kind, tier = tier, size_bytes = size_bytes,
      made_ms = t, ends_ms = t + horizon_ms})
    redis.call("HINCRBY", PREDICTION_SCORES, "made:" .. kind, 1)
    redis.call("HINCRBY", PREDICTION_SCORES, "bytes:" .. kind, integer(size_bytes))
    table.insert(told, field)
  end
end
return {told}
