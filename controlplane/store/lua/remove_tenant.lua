-- name -> 1, or 0 when it has no limits of its own
return redis.call("HDEL", TENANTS, ARGV[1])
