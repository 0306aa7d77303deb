-- "1" with digests, most digests of all together
-- -> {"FULL", digests}, or {"OK", {{id, data plane hash, pool digests, host digests, disk digests}, ...}
local with_digests, most = ARGV[1] == "1", tonumber(ARGV[2])
local planes, num_digests = {}, 0
local function digests(key)
  if not with_digests then return {} end
  num_digests = num_digests + redis.call("SCARD", key)
  return num_digests <= most and redis.call("SMEMBERS", key) or {}
end
for _, id in ipairs(live_data_planes()) do
  table.insert(planes, {
    id,
    redis.call("HGETALL", DATA_PLANE .. id),
    digests(RESIDENCY_POOL .. id),
    digests(RESIDENCY_HOST .. id),
    digests(RESIDENCY_DISK .. id),
  })
end
if num_digests > most then return {"FULL", num_digests} end
return {"OK", planes}
