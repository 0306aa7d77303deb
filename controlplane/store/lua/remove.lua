-- name, version ("0": the whole adapter) -> {"OK"} or {why not, detail}
local name, version = ARGV[1], ARGV[2]
local key = ADAPTER .. name
if redis.call("EXISTS", key) == 0 then return {"UNKNOWN"} end
if version == "0" then
  for _, alias in ipairs(redis.call("SMEMBERS", ALIASES_OF .. name)) do drop_alias(alias) end
  redis.call("DEL", key, HISTORY .. name, ALIASES_OF .. name)
  redis.call("ZREM", ADAPTERS, name)
  return {"OK"}
end
local identity = redis.call("HGET", key, "identity:" .. version)
if not identity then return {"UNKNOWN_VERSION"} end
if redis.call("HGET", key, "current") == version then return {"CURRENT"} end
for _, alias in ipairs(redis.call("SMEMBERS", ALIASES_OF .. name)) do
  if redis.call("HGET", ALIAS .. alias, "version") == version then return {"ALIASED", alias} end
end
redis.call("HDEL", key, "version:" .. version, "source:" .. version, "labels:" .. version, "private:" .. version,
  "identity:" .. version, "by_identity:" .. identity)
redis.call("HINCRBY", key, "count", -1)
redis.call("LREM", HISTORY .. name, 0, version)
return {"OK"}
