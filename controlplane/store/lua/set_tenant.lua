-- name, limits JSON, most tenants -> {"OK"} or {"TOO_MANY"}
local name, json, max_tenants = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call("HEXISTS", TENANTS, name) == 0 and redis.call("HLEN", TENANTS) >= max_tenants then
  return {"TOO_MANY"}
end
local before, was_default = limits_of(name)
redis.call("HSET", TENANTS, name, json)
-- What is owed by the limits before is made up for by the new ones from now on.
if before and name ~= "*" then
  local now = now_us()
  local bucket = bucket_of(name, was_default, now)
  if bucket == name then note_owed(name, false, cjson.decode(json), owed_by(name, before, now), now) end
end
return {"OK"}
