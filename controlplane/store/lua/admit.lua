-- model, key that a target of an alias is drawn by
-- -> {what it is, now_ms, signing key id, name, version, record, source, data planes, "1" when the
--   source is private, its number among admissions, those before it under way}
--   what it is: "ADAPTER", "BASE_MODEL", "ANY_BASE_MODEL" (the empty name) or "UNKNOWN"
--   data planes, all live ones: {{id, endpoint, base model, load, last_heartbeat_ms, num_placed,
--   tier that holds the adapter or "", outlook}, ...}
local model = ARGV[1]
local kind, name, version, record, source = "ANY_BASE_MODEL", "", "0", "", ""
if model ~= "" then
  local found, number, json, uri = resolve(model, ARGV[2])
  if found then
    kind, name, version, record, source = "ADAPTER", found, number, json, uri
  elseif redis.call("HEXISTS", BASE_MODELS, model) == 1 then
    kind, name = "BASE_MODEL", model
  else
    return {"UNKNOWN"}
  end
end
local digest = redis.call("HGET", ADAPTER .. name, "identity:" .. version)
digest = digest and string.match(digest, "^([^:]*):")
local planes = {}
for _, id in ipairs(live_data_planes()) do
  local plane = redis.call("HMGET", DATA_PLANE .. id,
    "endpoint", "base_model", "load", "last_heartbeat_ms", "num_placed", "outlook")
  local tier = ""
  if digest then
    if redis.call("SISMEMBER", RESIDENCY_POOL .. id, digest) == 1 then
      tier = "pool"
    elseif redis.call("SISMEMBER", RESIDENCY_HOST .. id, digest) == 1 then
      tier = "host"
    elseif redis.call("SISMEMBER", RESIDENCY_DISK .. id, digest) == 1 then
      tier = "disk"
    end
  end
  table.insert(planes, {id, plane[1], plane[2], plane[3], plane[4], plane[5], tier,
    plane[6] or ""})
end
-- They end in reserve.lua. Where Redis takes no writes, the request is placed all the same.
local number = redis.pcall("HINCRBY", ADMISSIONS, "begun", 1)
redis.pcall("PEXPIRE", ADMISSIONS, 2000)
if type(number) ~= "number" then number = 0 end
local ended = tonumber(redis.call("HGET", ADMISSIONS, "ended") or "0")
return {kind, integer(now_ms()), redis.call("GET", SIGNING_KEY_ID) or "", name, version, record,
  source, planes, redis.call("HGET", ADAPTER .. name, "private:" .. version) or "",
  number, math.max(number - 1 - ended, 0)}
