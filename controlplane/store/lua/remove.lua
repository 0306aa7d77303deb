-- name, version ("0": the whole adapter) -> {"OK"} or {why not, detail}
local name, version = ARGV[1], ARGV[2]
local key = ADAPTER .. name
-- A pin made by the name that goes: nobody could undo it any more, neither where it is kept nor
-- where it would be with who joins later. One of the same content by another name stays.
local function unpin(identity, number)
  local digest = string.match(identity, "^([^:]*):")
  local pin = redis.call("HGET", PINS, digest)
  pin = pin and cjson.decode(pin)
  if not pin or pin.name ~= name .. "@" .. number then return end
  redis.call("HDEL", PINS, digest)
  pin.action = "unpin"
  for _, id in ipairs(live_data_planes()) do
    if redis.call("HGET", DATA_PLANE .. id, "base_model") == pin.base_model then
      tell(id, cjson.encode(pin))
    end
  end
end
if redis.call("EXISTS", key) == 0 then return {"UNKNOWN"} end
if version == "0" then
  local aliases = dump(name)[3]
  for _, alias in ipairs(aliases) do
    for _, target in ipairs(targets_of(alias[1])) do
      if target[1] ~= name then return {"SHARED_ALIAS", alias[1]} end
    end
  end
  local merge, number = merged_into(name, "0")
  if merge then return {"MERGED", merge, number} end
  for _, alias in ipairs(aliases) do drop_alias(alias[1]) end
  for _, field in ipairs(redis.call("HKEYS", key)) do
    local number = string.match(field, "^identity:(.*)$")
    if number then
      unpin(redis.call("HGET", key, field), number)
      drop_components(name, number)
    end
  end
  redis.call("DEL", key, HISTORY .. name, ALIASES_OF .. name, MERGES_OF .. name)
  redis.call("ZREM", ADAPTERS, name)
  return {"OK"}
end
local identity = redis.call("HGET", key, "identity:" .. version)
if not identity then return {"UNKNOWN_VERSION"} end
if redis.call("HGET", key, "current") == version then return {"CURRENT"} end
for _, alias in ipairs(redis.call("SMEMBERS", ALIASES_OF .. name)) do
  local targets = targets_of(alias)
  if targets and points_to(targets, name, version) then return {"ALIASED", alias} end
end
local merge = merged_into(name, version)
if merge then return {"MERGED", merge, version} end
unpin(identity, version)
drop_components(name, version)
redis.call("HDEL", key, "version:" .. version, "source:" .. version, "labels:" .. version, "private:" .. version,
  "identity:" .. version, "by_identity:" .. identity)
redis.call("HINCRBY", key, "count", -1)
redis.call("LREM", HISTORY .. name, 0, version)
return {"OK"}
