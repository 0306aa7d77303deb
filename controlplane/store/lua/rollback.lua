-- name -> {"OK", dump} or {why not}
local name = ARGV[1]
local current = redis.call("HGET", ADAPTER .. name, "current")
if not current then return {"UNKNOWN"} end
while true do
  local before = redis.call("RPOP", HISTORY .. name)
  if not before then return {"NO_PREVIOUS"} end
  -- After a version between two equal entries was removed, the entry may be the current one.
  if before ~= current then
    redis.call("HSET", ADAPTER .. name, "current", before)
    return {"OK", dump(name)}
  end
end
