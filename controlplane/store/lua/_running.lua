-- Generations of tenants with max_running. A request counts from its admission until the time in its
-- tenant's zset, which its data plane puts off while it runs. Of one that goes on, a hash tells the
-- ticket that it has now: what is said of an earlier one means nothing any more.
local function outlive(key, ms)
  if redis.call("PTTL", key) < ms then redis.call("PEXPIRE", key, integer(ms)) end
end

-- longest_ms: that a request counts by one word of anybody. What counts for longer does since the clock
-- was set back; nil leaves it so.
local function num_running(tenant, now, longest_ms)
  local key = TENANT_RUNNING .. tenant
  if longest_ms then
    local until_ms = now + longest_ms
    for _, request in ipairs(redis.call("ZRANGEBYSCORE", key,
        "(" .. integer(until_ms + CLOCK_TOLERANCE_MS), "+inf", "LIMIT", 0, 1000)) do
      redis.pcall("ZADD", key, "XX", integer(until_ms), request)
    end
  end
  return redis.call("ZCOUNT", key, "(" .. integer(now), "+inf")
end

local function runs(tenant, request, ticket, now, ms)
  local running, holders = TENANT_RUNNING .. tenant, TENANT_HOLDERS .. tenant
  for _, lapsed in ipairs(redis.call("ZRANGEBYSCORE", running, "-inf", integer(now),
      "LIMIT", 0, 100)) do
    redis.call("ZREM", running, lapsed)
    redis.call("HDEL", holders, lapsed)
  end
  redis.call("ZADD", running, integer(now + ms), request)
  outlive(running, ms)
  if request ~= ticket then
    redis.call("HSET", holders, request, ticket)
    outlive(holders, ms)
  elseif redis.call("EXISTS", holders) == 1 then
    outlive(holders, ms)
  end
end

local function is_held_by_another(tenant, request, ticket)
  local holder = redis.call("HGET", TENANT_HOLDERS .. tenant, request)
  return holder and holder ~= ticket
end

local function still_runs(tenant, request, ticket, now, ms)
  if not is_held_by_another(tenant, request, ticket) then runs(tenant, request, ticket, now, ms) end
end

local function runs_no_more(tenant, request, ticket)
  if is_held_by_another(tenant, request, ticket) then return end
  redis.call("ZREM", TENANT_RUNNING .. tenant, request)
  redis.call("HDEL", TENANT_HOLDERS .. tenant, request)
end
