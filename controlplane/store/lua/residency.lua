-- id, incarnation, lease_ms, tier, tag, digests... : replaces the digests of one tier
local id, incarnation, lease_ms, tier, tag = unpack(ARGV, 1, 5)
local key = DATA_PLANE .. id
if redis.call("HGET", key, "incarnation") ~= incarnation then return 0 end
local prefix = {pool = RESIDENCY_POOL, host = RESIDENCY_HOST, disk = RESIDENCY_DISK}
local digests = prefix[tier] .. id
redis.call("DEL", digests)
for first = 6, #ARGV, 1000 do
  redis.call("SADD", digests, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
redis.call("PEXPIRE", digests, 2 * lease_ms)
redis.call("HSET", key, "tag:" .. tier, tag)
return 1
