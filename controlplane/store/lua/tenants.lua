-- -> {name, limits JSON, ...}
return redis.call("HGETALL", TENANTS)
