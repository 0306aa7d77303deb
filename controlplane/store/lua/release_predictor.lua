-- who asks: lets another control plane predict at once
if redis.call("GET", PREDICTOR) == ARGV[1] then redis.call("DEL", PREDICTOR) end
return 1
