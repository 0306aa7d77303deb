-- id, incarnation: ends the lease, unless a newer incarnation holds it
local id = ARGV[1]
if redis.call("HGET", DATA_PLANE .. id, "incarnation") ~= ARGV[2] then return 0 end
redis.call("DEL", DATA_PLANE .. id, DIRECTIVES .. id, RESIDENCY_POOL .. id, RESIDENCY_HOST .. id,
  RESIDENCY_DISK .. id, SENT_PREFIXES .. id .. ":" .. ARGV[2])
redis.call("SREM", DATA_PLANES, id)
return 1
