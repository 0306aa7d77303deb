-- What tenants may ask for, as token buckets. A bucket is "when (µs) requests tokens": what its tenant
-- owed then, asked for and not yet made up by time. It expires when nothing is owed any more.
local QUOTAS = {
  {rate = "requests_per_minute", burst = "request_burst"},
  {rate = "tokens_per_minute", burst = "token_burst"},
}
-- Tenants without limits of their own that have a bucket each; further ones share one, as anybody can
-- make up names.
local MAX_DEFAULT_BUCKETS = 10000

-- Limits, and whether they are those of "*"; nil when there are none.
local function limits_of(tenant)
  local found = redis.call("HMGET", TENANTS, tenant, "*")
  local json = found[1] or found[2]
  if not json then return nil end
  return cjson.decode(json), not found[1]
end

local function now_us()
  local t = redis.call("TIME")
  return t[1] * 1000000 + t[2]
end

local function burst_of(limits, quota)
  return limits[quota.burst] or limits[quota.rate]
end

local function bucket_of(tenant, is_default, now)
  if not is_default or redis.call("EXISTS", TENANT_BUCKET .. tenant) == 1 then return tenant end
  redis.pcall("ZREMRANGEBYSCORE", DEFAULT_BUCKETS, "-inf", now / 1000)
  return redis.call("ZCARD", DEFAULT_BUCKETS) < MAX_DEFAULT_BUCKETS and tenant or "*"
end

-- {requests, tokens}; a clock that was set back makes up nothing for that, and goes on from there.
local function owed_by(bucket, limits, now)
  local at, requests, tokens =
    string.match(redis.call("GET", TENANT_BUCKET .. bucket) or "", "^(%S+) (%S+) (%S+)$")
  if at and tonumber(at) > now + CLOCK_TOLERANCE_MS * 1000 then
    local text = string.format("%.0f %s %s", now, requests, tokens)
    redis.pcall("SET", TENANT_BUCKET .. bucket, text, "KEEPTTL")
  end
  local minutes = math.max(now - (tonumber(at or now)), 0) / 6e7
  local owed = {tonumber(requests or 0), tonumber(tokens or 0)}
  for i, quota in ipairs(QUOTAS) do
    local rate = limits[quota.rate]
    owed[i] = rate and math.max(owed[i] - minutes * rate, 0) or 0
  end
  return owed
end

-- Where Redis takes no writes, nothing is noted: as little as of other admissions.
local function note_owed(bucket, is_default, limits, owed, now)
  local minutes = 0
  for i, quota in ipairs(QUOTAS) do
    local rate = limits[quota.rate] or 0
    if rate > 0 then minutes = math.max(minutes, owed[i] / rate) end
  end
  local ms = math.ceil(minutes * 60000)
  if ms < 1 then return redis.pcall("DEL", TENANT_BUCKET .. bucket) end
  local text = string.format("%.0f %.17g %.17g", now, owed[1], owed[2])
  redis.pcall("SET", TENANT_BUCKET .. bucket, text, "PX", integer(ms))
  if is_default and bucket ~= "*" then
    redis.pcall("ZADD", DEFAULT_BUCKETS, integer(now / 1000 + ms), bucket)
  end
end

-- Takes {requests, tokens} off what a tenant may ask for, all or nothing; the tokens at most a burst.
-- -> nil and the tokens taken, or {limit, its value, asked, milliseconds until it would be taken or ""}
local function charge(tenant, limits, is_default, asked)
  local now = now_us()
  local bucket = bucket_of(tenant, is_default, now)
  local owed = owed_by(bucket, limits, now)
  local refusal, longest = nil, -1
  for i, quota in ipairs(QUOTAS) do
    local rate = limits[quota.rate]
    if rate then
      local burst, whole = burst_of(limits, quota), asked[i]
      asked[i] = math.min(whole, burst)
      local excess = owed[i] + asked[i] - burst
      local minutes = rate == 0 and math.huge or excess / rate
      if (rate == 0 or excess > 1e-6) and minutes > longest then
        local ms = rate == 0 and "" or integer(math.ceil(minutes * 60000))
        refusal, longest = {quota.rate, integer(rate), integer(whole), ms}, minutes
      end
      owed[i] = owed[i] + asked[i]
    end
  end
  if refusal then return refusal end
  note_owed(bucket, is_default, limits, owed, now)
  return nil, limits.tokens_per_minute and asked[2] or 0
end

-- Of a charge that turned out to be too much; below 0, too little.
local function give_back(tenant, requests, tokens)
  local limits, is_default = limits_of(tenant)
  if not limits then return end
  local now = now_us()
  local bucket = bucket_of(tenant, is_default, now)
  local owed, given = owed_by(bucket, limits, now), {requests, tokens}
  for i, quota in ipairs(QUOTAS) do
    if limits[quota.rate] then owed[i] = owed[i] - given[i] end
  end
  note_owed(bucket, is_default, limits, owed, now)
end
