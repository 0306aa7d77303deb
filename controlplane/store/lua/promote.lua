-- name, version, max_history -> {"OK", dump} or {why not, detail}
local name, version = ARGV[1], ARGV[2]
if redis.call("EXISTS", ADAPTER .. name) == 0 then return {"UNKNOWN"} end
if redis.call("HEXISTS", ADAPTER .. name, "version:" .. version) == 0 then
  return {"UNKNOWN_VERSION"}
end
local alias = mixed_by(name, base_model_of(name, version))
if alias then return {"ALIAS_MIXED", alias} end
make_current(name, version, tonumber(ARGV[3]))
return {"OK", dump(name)}
