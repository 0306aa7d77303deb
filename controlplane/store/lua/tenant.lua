-- name -> {limits JSON or "", "1" when they are those of "*", requests and tokens owed, generations
--   that count as running}
local limits, is_default = limits_of(ARGV[1])
if not limits then return {"", "", "0", "0", 0} end
local owed = {0, 0}
if ARGV[1] ~= "*" then
  local now = now_us()
  owed = owed_by(bucket_of(ARGV[1], is_default, now), limits, now)
end
local found = redis.call("HMGET", TENANTS, ARGV[1], "*")
return {found[1] or found[2], is_default and "1" or "", number(owed[1]), number(owed[2]),
  num_running(ARGV[1], now_ms())}
