-- alias, adapter, version ("0": the current one), max_aliases -> {"OK"} or {why not, detail}
local alias, adapter, version = ARGV[1], ARGV[2], ARGV[3]
if redis.call("EXISTS", ADAPTER .. alias) == 1 then return {"ADAPTER"} end
if redis.call("HEXISTS", BASE_MODELS, alias) == 1 then return {"BASE_MODEL"} end
if redis.call("EXISTS", ADAPTER .. adapter) == 0 then return {"UNKNOWN"} end
if version ~= "0" and redis.call("HEXISTS", ADAPTER .. adapter, "version:" .. version) == 0 then
  return {"UNKNOWN_VERSION"}
end
if redis.call("HGET", ALIAS .. alias, "adapter") ~= adapter
    and redis.call("SCARD", ALIASES_OF .. adapter) >= tonumber(ARGV[4]) then
  return {"TOO_MANY_ALIASES"}
end
drop_alias(alias)
redis.call("HSET", ALIAS .. alias, "adapter", adapter, "version", version)
redis.call("SADD", ALIASES_OF .. adapter, alias)
return {"OK"}
