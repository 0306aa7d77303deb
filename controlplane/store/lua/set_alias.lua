-- alias, most aliases of an adapter, targets as JSON or "" for one, adapter and version ("0": the
-- current one) of the heaviest, then those of each target
-- -> {"OK"} or {why not, number of the target, detail}
local alias, max_aliases, json = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if redis.call("EXISTS", ADAPTER .. alias) == 1 then return {"ADAPTER", "0"} end
if redis.call("HEXISTS", BASE_MODELS, alias) == 1 then return {"BASE_MODEL", "0"} end
local base
for i = 6, #ARGV, 2 do
  local adapter, version, number = ARGV[i], ARGV[i + 1], integer((i - 6) / 2)
  local key = ADAPTER .. adapter
  if redis.call("EXISTS", key) == 0 then return {"UNKNOWN", number} end
  if version ~= "0" and redis.call("HEXISTS", key, "version:" .. version) == 0 then
    return {"UNKNOWN_VERSION", number}
  end
  local its_base = base_model_of(adapter, version)
  base = base or its_base
  if its_base ~= base then return {"MIXED", number, its_base, base} end
  if redis.call("SISMEMBER", ALIASES_OF .. adapter, alias) == 0
      and redis.call("SCARD", ALIASES_OF .. adapter) >= max_aliases then
    return {"TOO_MANY_ALIASES", number}
  end
end
drop_alias(alias)
-- An older control plane reads the first two fields only.
redis.call("HSET", ALIAS .. alias, "adapter", ARGV[4], "version", ARGV[5])
if json ~= "" then redis.call("HSET", ALIAS .. alias, "targets", json) end
for i = 6, #ARGV, 2 do redis.call("SADD", ALIASES_OF .. ARGV[i], alias) end
return {"OK"}
