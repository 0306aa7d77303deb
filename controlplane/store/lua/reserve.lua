-- id, requests, id, requests, ... : counts requests placed since the last heartbeat
for i = 1, #ARGV, 2 do
  if redis.call("EXISTS", DATA_PLANE .. ARGV[i]) == 1 then
    redis.call("HINCRBY", DATA_PLANE .. ARGV[i], "num_placed", ARGV[i + 1])
  end
end
return 1
