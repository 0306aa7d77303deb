-- -> {name, record, ...}
return redis.call("HGETALL", BASE_MODELS)
