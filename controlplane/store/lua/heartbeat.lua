-- id, incarnation, load, lease_ms, tags of pool, host and disk residency, received directives,
--   counters, outlook, number of a settlement or 0, JSON {{tenant, tokens unused}, ...}
-- -> {"OK", {tiers whose digests are to be sent}, signing key id, ticket keys,
--     {"number directive", ...}, now_ms} or {why not}
local id, incarnation, load, lease_ms = unpack(ARGV)
local key = DATA_PLANE .. id
local held = redis.call("HGET", key, "incarnation")
if not held then return {"EXPIRED"} end
if held ~= incarnation then return {"REPLACED"} end
-- The report counts what was placed here so far.
redis.call("HSET", key, "load", load, "last_heartbeat_ms", integer(now_ms()), "num_placed", 0,
  "counters", ARGV[9], "outlook", ARGV[10])
redis.call("PEXPIRE", key, lease_ms)
redis.call("PEXPIRE", SENT_PREFIXES .. id .. ":" .. incarnation, 2 * lease_ms)
local settled = tonumber(redis.call("HGET", key, "settled") or "0")
if tonumber(ARGV[11]) > settled then
  redis.call("HSET", key, "settled", ARGV[11])
  for _, each in ipairs(cjson.decode(ARGV[12])) do give_back(each[1], 0, each[2]) end
end
-- What a control plane that died had under way does not count for ever.
local begun = redis.call("HGET", ADMISSIONS, "begun")
if begun then redis.call("HSET", ADMISSIONS, "ended", begun) end
local wanted = {}
local tiers = {pool = RESIDENCY_POOL, host = RESIDENCY_HOST, disk = RESIDENCY_DISK}
for i, tier in ipairs({"pool", "host", "disk"}) do
  redis.call("PEXPIRE", tiers[tier] .. id, 2 * lease_ms)
  if redis.call("HGET", key, "tag:" .. tier) ~= ARGV[4 + i] then table.insert(wanted, tier) end
end
redis.call("ZREMRANGEBYSCORE", DIRECTIVES .. id, "-inf", ARGV[8])
redis.call("PEXPIRE", DIRECTIVES .. id, 2 * lease_ms)
return {"OK", wanted, redis.call("GET", SIGNING_KEY_ID), ticket_keys(),
  redis.call("ZRANGE", DIRECTIVES .. id, 0, 99), integer(now_ms())}
