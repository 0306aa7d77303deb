-- name -> {"OK", dump} or {why not, detail}
local name = ARGV[1]
local current = redis.call("HGET", ADAPTER .. name, "current")
if not current then return {"UNKNOWN"} end
while true do
  local before = redis.call("LINDEX", HISTORY .. name, -1)
  if not before then return {"NO_PREVIOUS"} end
  local alias = mixed_by(name, base_model_of(name, before))
  if alias then return {"ALIAS_MIXED", alias} end
  redis.call("RPOP", HISTORY .. name)
  -- After a version between two equal entries was removed, the entry may be the current one.
  if before ~= current then
    redis.call("HSET", ADAPTER .. name, "current", before)
    return {"OK", dump(name)}
  end
end
