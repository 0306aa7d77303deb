-- demand JSON or "", prefixes JSON or "", id, requests, id, requests, ... : counts requests placed since
-- the last heartbeat, and notes what they asked for and what of prompts they sent there -> the demand
-- clock in ms, or "" without demand
--   the id is "" for those that were placed nowhere; none of them is under way any more
--   demand: {limits, asked = {{data plane or "", identity, name@version, requests}, ...},
--     visits = {{tenant, identity}, ...} in order}
--   prefixes: {max, lives_ms, sent = {{data plane, {member, ...}}, ...}}
local ended = 0
for i = 3, #ARGV, 2 do
  ended = ended + ARGV[i + 1]
  if redis.call("EXISTS", DATA_PLANE .. ARGV[i]) == 1 then
    redis.call("HINCRBY", DATA_PLANE .. ARGV[i], "num_placed", ARGV[i + 1])
  end
end
local begun = tonumber(redis.call("HGET", ADMISSIONS, "begun") or "0")
if begun > 0 and redis.call("HINCRBY", ADMISSIONS, "ended", ended) > begun then
  redis.call("HSET", ADMISSIONS, "ended", begun)
end
-- Those that were sent longest ago go first.
local function note_sent(prefixes)
  local now = now_ms()
  for _, sent in ipairs(prefixes.sent) do
    local incarnation = redis.call("HGET", DATA_PLANE .. sent[1], "incarnation")
    if incarnation then
      local key, members = SENT_PREFIXES .. sent[1] .. ":" .. incarnation, sent[2]
      for from = 1, #members, 1000 do
        local scored = {}
        for i = from, math.min(from + 999, #members) do
          table.insert(scored, now)
          table.insert(scored, members[i])
        end
        redis.call("ZADD", key, unpack(scored))
      end
      redis.call("ZREMRANGEBYSCORE", key, "-inf", now - prefixes.lives_ms)
      redis.call("ZREMRANGEBYRANK", key, 0, -prefixes.max - 1)
      redis.call("PEXPIRE", key, math.max(redis.call("PTTL", DATA_PLANE .. sent[1]), 1) * 2)
    end
  end
end

if ARGV[2] ~= "" then note_sent(cjson.decode(ARGV[2])) end
if ARGV[1] == "" then return "" end
local demand = cjson.decode(ARGV[1])
local limits = demand.limits
local t = demand_now(limits.max_step_ms)

for _, asked in ipairs(demand.asked) do
  local data_plane, identity, name, count = unpack(asked)
  for i, tau_ms in ipairs(limits.tau_ms) do bump(DEMAND .. i, identity, t, tau_ms, count) end
  if name ~= "" then
    redis.call("HSET", DEMANDED, identity, integer(t) .. " " .. name)
    settle_hit(data_plane, identity, t, limits)
  end
end
local excess = redis.call("ZCARD", DEMAND .. 2) - limits.max_adapters
if excess > 0 then
  for _, identity in ipairs(redis.call("ZRANGE", DEMAND .. 2, 0, excess - 1)) do
    forget_demand(identity)
  end
end

-- The least takes in a newcomer, which inherits its count (Space-Saving: Metwally et al., ICDT 2005).
local function follow(before, identity)
  local key = FOLLOWERS .. before
  if not redis.call("ZSCORE", key, identity)
      and redis.call("ZCARD", key) > limits.max_followers then
    local least = redis.call("ZRANGE", key, 0, 0, "WITHSCORES")
    redis.call("ZREM", key, least[1])
    redis.call("ZADD", key, least[2], identity)
  end
  bump(key, identity, t, limits.follow_tau_ms, 1)
end

for _, visit in ipairs(demand.visits) do
  local tenant, identity = unpack(visit)
  local since = tonumber(redis.call("ZSCORE", SESSIONS, tenant) or nil)
  local last = since and t - since <= limits.session_ms and redis.call("HGET", SESSION_LAST, tenant)
  local came_ms, before = string.match(last or "", "^(%d+) (.*)$")
  redis.call("ZADD", SESSIONS, t, tenant)
  if before ~= identity then
    redis.call("HSET", SESSION_LAST, tenant, integer(t) .. " " .. identity)
    if before and redis.call("HEXISTS", DEMANDED, before) == 1 then
      follow(before, identity)
      local gap_ms = tonumber(redis.call("HGET", PREDICTION_SCORES, "gap_ms") or t - came_ms)
      redis.call("HSET", PREDICTION_SCORES, "gap_ms",
        number(limits.keep * gap_ms + (1 - limits.keep) * (t - came_ms)))
    end
    if redis.call("HEXISTS", DEMANDED, identity) == 1 then
      bump(FOLLOWERS .. identity, "", t, limits.follow_tau_ms, 1)
      redis.call("PEXPIRE", FOLLOWERS .. identity, limits.follow_expiry_ms)
      redis.call("ZADD", VISITED, t, identity)
    end
  end
end
redis.call("ZREMRANGEBYRANK", VISITED, 0, -limits.max_visited - 1)
excess = redis.call("ZCARD", SESSIONS) - limits.max_tenants
local gone = excess > 0 and redis.call("ZRANGE", SESSIONS, 0, excess - 1) or {}
for _, tenant in ipairs(redis.call("ZRANGEBYSCORE", SESSIONS, "-inf", t - limits.session_ms - 1,
    "LIMIT", 0, 100)) do
  table.insert(gone, tenant)
end
for _, tenant in ipairs(gone) do
  redis.call("ZREM", SESSIONS, tenant)
  redis.call("HDEL", SESSION_LAST, tenant)
end
return integer(t)
