-- who asks, lease_ms, limits JSON
-- -> {"OTHER"} while another control plane predicts, or {"OK", now (demand clock, ms), now_ms,
--   {{identity, name@version, record, source, "1" when private, "1" when pinned,
--     {count's logarithm by each half-life}, when it was asked for last}, ...},
--   {{identity that a session came to, {follower's identity or "" for all visits, logarithm, ...}}, ...},
--   {{base model, {logarithm of all its requests by each half-life}}, ...},
--   {{data plane, base model, load, num_placed, counters, joined_ms, debt, debt's time,
--     a letter for each adapter above: p, h, d or - }, ...},
--   {"data plane identity", prediction JSON, ...}, {what:kind, count, ...}}
-- Ends predictions whose time is over, and takes the visits since the last tick.
local me, lease_ms, limits = ARGV[1], ARGV[2], cjson.decode(ARGV[3])
local holder = redis.call("GET", PREDICTOR)
-- A longer lease than any is one from before the clock was set back.
local is_held = holder and holder ~= me
if is_held and redis.call("PTTL", PREDICTOR) <= tonumber(lease_ms) then return {"OTHER"} end
redis.call("SET", PREDICTOR, me, "PX", lease_ms)
local t = demand_now(limits.max_step_ms)

for _, field in ipairs(redis.call("ZRANGEBYSCORE", PREDICTION_ENDS, "-inf", t, "LIMIT", 0, 1000)) do
  local json = redis.call("HGET", PREDICTIONS, field)
  local prediction = json and cjson.decode(json)
  -- What a data plane that is gone was to bring is neither right nor wrong.
  if prediction and prediction.state == "open"
      and redis.call("EXISTS", DATA_PLANE .. string.match(field, "^[^ ]*")) == 1 then
    score_prediction(prediction.kind, "misses", limits.keep)
  end
  drop_prediction(field)
end

-- Redis does nothing else meanwhile: the more data planes, the fewer adapters.
local live = live_data_planes()
local most = math.max(limits.num_top / 4, math.floor(limits.max_lookups / math.max(#live, 1)))
local identities, known, bases = {}, {}, {}
local function want(identity)
  if known[identity] or #identities >= most then return end
  known[identity] = true
  if string.sub(identity, 1, 1) ~= ":" then table.insert(identities, identity) end
end
local visits = {}
for _, identity in ipairs(redis.call("ZRANGEBYSCORE", VISITED, t - limits.session_ms, "+inf")) do
  local visited = tonumber(redis.call("ZSCORE", FOLLOWERS .. identity, "") or nil)
  local followers = visited and redis.call("ZREVRANGEBYSCORE", FOLLOWERS .. identity, "+inf",
    number(visited + math.log(limits.min_share)), "WITHSCORES") or {}
  table.insert(visits, {identity, followers})
  for i = 1, #followers, 2 do
    if followers[i] ~= "" then want(followers[i]) end
  end
end
redis.call("DEL", VISITED)
for i, share in ipairs({4, 1, 2}) do
  for _, identity in ipairs(redis.call("ZREVRANGE", DEMAND .. i, 0, math.floor(limits.num_top / share) - 1)) do
    want(identity)
  end
end

local function scores(identity)
  local found = {}
  for i = 1, 3 do found[i] = redis.call("ZSCORE", DEMAND .. i, identity) or "-inf" end
  return found
end

local wanted, digests, base_of = {}, {}, {}
for _, identity in ipairs(identities) do
  local name, since = demanded(identity)
  local adapter, version = string.match(name or "", "^(.*)@(%d+)$")
  local found = adapter and redis.call("HMGET", ADAPTER .. adapter, "version:" .. version,
    "source:" .. version, "private:" .. version, "identity:" .. version)
  if found and found[4] == identity then
    local digest, base = string.match(identity, "^([^:]*):(.*)$")
    local pinned = redis.call("HEXISTS", PINS, digest)
    table.insert(wanted, {identity, name, found[1], found[2], found[3] or "", integer(pinned),
      scores(identity), since})
    table.insert(digests, digest)
    table.insert(base_of, base)
    bases[base] = true
  else
    forget_demand(identity)  -- its version was removed
  end
end
local totals = {}
for base in pairs(bases) do table.insert(totals, {base, scores(":" .. base)}) end

local planes = {}
for _, id in ipairs(live) do
  local plane = redis.call("HMGET", DATA_PLANE .. id, "base_model", "load", "num_placed", "counters",
    "joined_ms", "prefetch_debt", "prefetch_debt_ms")
  local where = {}
  if #digests > 0 then
    local pool = redis.call("SMISMEMBER", RESIDENCY_POOL .. id, unpack(digests))
    local host = redis.call("SMISMEMBER", RESIDENCY_HOST .. id, unpack(digests))
    local disk = redis.call("SMISMEMBER", RESIDENCY_DISK .. id, unpack(digests))
    for i = 1, #digests do
      where[i] = pool[i] == 1 and "p" or host[i] == 1 and "h" or disk[i] == 1 and "d" or "-"
    end
  end
  table.insert(planes, {id, plane[1], plane[2], plane[3], plane[4] or "", plane[5] or "",
    plane[6] or "0", plane[7] or "0", table.concat(where)})
end
return {"OK", integer(t), integer(now_ms()), wanted, visits, totals, planes,
  redis.call("HGETALL", PREDICTIONS), redis.call("HGETALL", PREDICTION_SCORES)}
