-- -> {{id, data plane hash, pool digests, host digests, disk digests}, ...}
local planes = {}
for _, id in ipairs(live_data_planes()) do
  table.insert(planes, {
    id,
    redis.call("HGETALL", DATA_PLANE .. id),
    redis.call("SMEMBERS", RESIDENCY_POOL .. id),
    redis.call("SMEMBERS", RESIDENCY_HOST .. id),
    redis.call("SMEMBERS", RESIDENCY_DISK .. id),
  })
end
return planes
