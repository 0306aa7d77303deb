-- Demand for adapters and predictions of it. Counts fade exponentially; each is kept as the logarithm
-- of what it will have faded from, log(sum of e^(t/tau)), so that two of them keep their order while
-- nobody is counted (forward decay: Cormode et al., ICDE 2009). controlplane/prefetch/decay.py reads
-- them; benchmarks/prefetch_demand.py does the same in Python.

-- Milliseconds of a clock of its own: it goes on with Redis', stands still when that is set back, and
-- a gap counts for `max_step_ms` at most. Then Redis' own.
local function demand_time(max_step_ms)
  local now = now_ms()
  local clock = redis.call("HMGET", DEMAND_CLOCK, "seen", "now")
  local step = math.max(now - (tonumber(clock[1]) or now), 0)
  return (tonumber(clock[2]) or 0) + math.min(step, max_step_ms), now
end

-- The same, and keeps it for the next look.
local function demand_now(max_step_ms)
  local t, now = demand_time(max_step_ms)
  redis.call("HSET", DEMAND_CLOCK, "seen", integer(now), "now", integer(t))
  return t
end

local function number(x)
  return string.format("%.17g", x)
end

local function faded_sum(score, t, tau_ms, count)
  local new = t / tau_ms + math.log(count)
  if not score then return new end
  local high, low = math.max(score, new), math.min(score, new)
  return high + math.log(1 + math.exp(low - high))
end

local function bump(key, member, t, tau_ms, count)
  local score = tonumber(redis.call("ZSCORE", key, member) or nil)
  redis.call("ZADD", key, number(faded_sum(score, t, tau_ms, count)), member)
end

-- name@version, and when it was asked for by that; nil when it was not lately.
local function demanded(identity)
  local since, name = string.match(redis.call("HGET", DEMANDED, identity) or "", "^(%d+) (.*)$")
  return name, since
end

-- Nobody asks for it any more.
local function forget_demand(identity)
  for i = 1, 3 do redis.call("ZREM", DEMAND .. i, identity) end
  redis.call("HDEL", DEMANDED, identity)
  redis.call("ZREM", VISITED, identity)
  redis.call("DEL", FOLLOWERS .. identity)
end

-- What a prediction came to: "hits", "late" or "misses". `keep`: the weight of those before.
local function score_prediction(kind, what, keep)
  redis.call("HINCRBY", PREDICTION_SCORES, what .. ":" .. kind, 1)
  local before = redis.call("HMGET", PREDICTION_SCORES, "recent:" .. kind, "recent_hits:" .. kind)
  redis.call("HSET", PREDICTION_SCORES,
    "recent:" .. kind, number((tonumber(before[1]) or 0) * keep + 1),
    "recent_hits:" .. kind, number((tonumber(before[2]) or 0) * keep + (what == "hits" and 1 or 0)))
end

local function note_prediction(data_plane, identity, prediction)
  local field = data_plane .. " " .. identity
  redis.call("HSET", PREDICTIONS, field, cjson.encode(prediction))
  redis.call("ZADD", PREDICTION_ENDS, prediction.ends_ms, field)
end

local function drop_prediction(field)
  redis.call("HDEL", PREDICTIONS, field)
  redis.call("ZREM", PREDICTION_ENDS, field)
end

-- A request for it was placed there: a hit when the data plane has it in memory by its last report,
-- late when it does not have it yet, or not any more.
local function settle_hit(data_plane, identity, t, limits)
  local field = data_plane .. " " .. identity
  local json = redis.call("HGET", PREDICTIONS, field)
  if not json then return end
  local prediction = cjson.decode(json)
  if prediction.state == "held_off" then return drop_prediction(field) end
  if prediction.state ~= "open" then return end
  -- It stays for a while, so that it is not asked for again at once.
  prediction.state = "hit"
  prediction.ends_ms = math.min(prediction.ends_ms, t + limits.repeat_ms)
  note_prediction(data_plane, identity, prediction)
  local digest = string.match(identity, "^([^:]*)")
  local there = redis.call("SISMEMBER", RESIDENCY_POOL .. data_plane, digest) == 1
    or redis.call("SISMEMBER", RESIDENCY_HOST .. data_plane, digest) == 1
  score_prediction(prediction.kind, there and "hits" or "late", limits.keep)
end

-- A data plane begins anew: what was predicted for the one before is neither right nor wrong. What an
-- operator had unloaded there stays so.
local function drop_predictions_of(data_plane)
  local all = redis.call("HGETALL", PREDICTIONS)
  for i = 1, #all, 2 do
    local field = all[i]
    if string.match(field, "^[^ ]*") == data_plane
        and cjson.decode(all[i + 1]).state ~= "held_off" then
      drop_prediction(field)
    end
  end
end

-- An operator had it unloaded there: no prediction brings it back before somebody asks for it.
local function hold_off(data_plane, identity)
  if redis.call("HLEN", PREDICTIONS) >= 512 then return end  -- there must be room for predictions
  note_prediction(data_plane, identity,
    {state = "held_off", ends_ms = demand_now(3600000) + 3600000})
end
