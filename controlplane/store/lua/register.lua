-- name, digest, base model, its record as checked, version record, source, labels or "",
-- max_versions, max_history, "1" for a private source, "1" when the name must be new, number of the
-- version or "0", "1" when the current version stays, then name@version and digest of each component
-- when it is a merge
-- -> {"OK", version, created, dump} or {why not, detail}
local name, digest, base, base_record, record, source, labels = unpack(ARGV, 1, 7)
local max_versions, max_history = tonumber(ARGV[8]), tonumber(ARGV[9])
if redis.call("HEXISTS", BASE_MODELS, name) == 1 then return {"BASE_MODEL", name} end
local taken = redis.call("HGET", ALIAS .. name, "adapter")
if taken then return {"ALIAS", taken} end
if redis.call("HGET", BASE_MODELS, base) ~= base_record then return {"BASE_CHANGED", base} end

local components = {}
for i = 14, #ARGV, 2 do
  local component, number = string.match(ARGV[i], "^([^@]*)@(%d+)$")
  local its = redis.call("HMGET", ADAPTER .. component, "identity:" .. number, "private:" .. number)
  if its[1] ~= ARGV[i + 1] .. ":" .. base then return {"COMPONENT_UNKNOWN", ARGV[i]} end
  if its[2] == "1" then return {"COMPONENT_PRIVATE", ARGV[i]} end
  table.insert(components, component)
  table.insert(components, number)
end

local key = ADAPTER .. name
if ARGV[11] == "1" and redis.call("EXISTS", key) == 1 then return {"EXISTS", name} end
local mixed = ARGV[13] == "" and mixed_by(name, base)
if mixed then return {"ALIAS_MIXED", mixed} end
local identity = digest .. ":" .. base
local version = redis.call("HGET", key, "by_identity:" .. identity)
local created, number = 0, ARGV[12]
if version and number ~= "0" and number ~= version then return {"NUMBER_TAKEN", version} end
if not version then
  local count = tonumber(redis.call("HGET", key, "count") or "0")
  if count >= max_versions then return {"TOO_MANY_VERSIONS", integer(count)} end
  local last = redis.call("HGET", NEXT_VERSIONS, name) or "0"
  version = number == "0" and integer(last + 1) or number
  if redis.call("HEXISTS", key, "version:" .. version) == 1 then return {"NUMBER_TAKEN", version} end
  redis.call("HSET", NEXT_VERSIONS, name, integer(math.max(last, version)))
  created = 1
  redis.call("HSET", key,
    "version:" .. version, record,
    "identity:" .. version, identity,
    "by_identity:" .. identity, version,
    "labels:" .. version, "{}",
    "count", count + 1)
  redis.call("ZADD", ADAPTERS, 0, name)
end
redis.call("HSET", key, "source:" .. version, source, "private:" .. version, ARGV[10])
set_components(name, version, components)
if labels ~= "" then redis.call("HSET", key, "labels:" .. version, labels) end
if ARGV[13] == "" or redis.call("HEXISTS", key, "current") == 0 then
  make_current(name, version, max_history)
end
return {"OK", version, created, dump(name)}
