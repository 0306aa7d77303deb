-- id and key (hex) to use if there is none yet -> {signing key id, {id, key, ...}}
if redis.call("EXISTS", SIGNING_KEY_ID) == 0 then
  redis.call("HSET", TICKET_KEYS, ARGV[1], ARGV[2])
  redis.call("SET", SIGNING_KEY_ID, ARGV[1])
end
return {redis.call("GET", SIGNING_KEY_ID), ticket_keys()}
