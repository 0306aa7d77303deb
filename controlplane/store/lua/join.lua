-- id, incarnation (20 digits), endpoint, base model, fingerprint, base model record, lease_ms,
--   most live data planes
-- -> {"OK", now_ms} or {why not, detail}
local id, incarnation, endpoint, base, fingerprint, record = unpack(ARGV)
local key = DATA_PLANE .. id
local live = live_data_planes()  -- first: it mends leases
local held = redis.call("HGET", key, "incarnation")
if held and incarnation < held then return {"STALE_INCARNATION", held} end
if not held and #live >= tonumber(ARGV[8]) then return {"FULL"} end
if redis.call("EXISTS", ADAPTER .. base) == 1 then return {"ADAPTER"} end
if redis.call("EXISTS", ALIAS .. base) == 1 then return {"ALIAS"} end
for _, other in ipairs(live) do
  local theirs = redis.call("HMGET", DATA_PLANE .. other, "base_model", "fingerprint")
  if other ~= id and theirs[1] == base and theirs[2] ~= fingerprint then
    return {"FINGERPRINT", other, theirs[2]}
  end
end
-- Before what a full memory would let through, with heartbeats that it does not.
redis.call("SADD", DATA_PLANES, id)
if redis.call("HGET", BASE_MODELS, base) ~= record then
  redis.call("HSET", BASE_MODELS, base, record)
end
redis.call("DEL", key, DIRECTIVES .. id, RESIDENCY_POOL .. id, RESIDENCY_HOST .. id, RESIDENCY_DISK .. id)
redis.call("HSET", key,
  "incarnation", incarnation,
  "endpoint", endpoint,
  "base_model", base,
  "fingerprint", fingerprint,
  "load", "",
  "last_heartbeat_ms", integer(now_ms()),
  "joined_ms", integer(now_ms()),
  "num_placed", 0)
drop_predictions_of(id)
redis.call("PEXPIRE", key, ARGV[7])
for _, json in ipairs(redis.call("HVALS", PINS)) do
  local pin = cjson.decode(json)
  if pin.base_model == base then add_directive(id, json, 2 * ARGV[7]) end
end
return {"OK", integer(now_ms())}
