-- model, key that a target of an alias is drawn by, tenant, tokens of the prompt, most of the answer
--   or "", of a request that goes on the id of its first ticket, else "", the id that its ticket gets,
--   how long it counts as running until somebody says so, how long it does at most by one word of
--   anybody, then marks of the prompt's beginnings, the
--   shortest first
-- -> {what it is, now_ms, signing key id, name, version, record, source, data planes, "1" when the
--   source is private, its number among admissions, those before it under way, the tenant's highest
--   priority or "", requests charged, tokens charged, first ticket of the request where it counts as
--   running, else "", why Redis takes no writes or ""}
--   what it is: "ADAPTER", "BASE_MODEL", "ANY_BASE_MODEL" (the empty name), "UNKNOWN", or "QUOTA",
--   followed by limit, its value, what was asked for, milliseconds until it is there or ""
--   data planes, all live ones, in one text, as clients take long to read many: a line each of id,
--   endpoint, base model, load, last_heartbeat_ms, num_placed, tier that holds the adapter or "",
--   outlook, and, with commas between, number of a mark that was sent there, milliseconds since,
--   number of a shorter one that was sent later, ...; tabs between
local MAX_GOING_ON, GOING_ON_MS = 64, 6 * 3600 * 1000

-- Whether this is one of the admissions that a request's first ticket stands for.
local function goes_on(ticket_id)
  if ticket_id == "" then return false end
  local times = redis.pcall("INCR", CONTINUED .. ticket_id)
  redis.pcall("PEXPIRE", CONTINUED .. ticket_id, GOING_ON_MS)
  return type(times) ~= "number" or times <= MAX_GOING_ON
end

-- Tokens that the base model's context has; nil when it is not known.
local function context_of(kind, name, version)
  local base = name
  if kind == "ADAPTER" then
    base = base_model_of(name, version)
  elseif kind == "ANY_BASE_MODEL" then
    local some = live_data_planes()[1]
    base = some and redis.call("HGET", DATA_PLANE .. some, "base_model") or ""
  end
  local record = redis.call("HGET", BASE_MODELS, base)
  return record and cjson.decode(record).max_context_tokens
end

-- Of the marks those that a data plane was sent, as described above.
local function sent_to(id, incarnation, members, now)
  local found, youngest = {}, math.huge
  if #members == 0 then return found end
  local times = redis.call("ZMSCORE", SENT_PREFIXES .. id .. ":" .. incarnation, unpack(members))
  for i = #members, 1, -1 do
    local age = times[i] and now - times[i]
    -- One that is to come was noted before the clock was set back: nobody knows when.
    if age and age >= -CLOCK_TOLERANCE_MS and age < youngest then
      table.insert(found, i)
      table.insert(found, math.max(age, 0))
      youngest = age
    end
  end
  return found
end

local model = ARGV[1]
local kind, name, version, record, source = "ANY_BASE_MODEL", "", "0", "", ""
if model ~= "" then
  local found, number, json, uri = resolve(model, ARGV[2])
  if found then
    kind, name, version, record, source = "ADAPTER", found, number, json, uri
  elseif redis.call("HEXISTS", BASE_MODELS, model) == 1 then
    kind, name = "BASE_MODEL", model
  else
    return {"UNKNOWN"}
  end
end
local limits, is_default = limits_of(ARGV[3])
local num_charged, tokens_charged, running = 0, 0, ""
local has_rates = limits and (limits.requests_per_minute or limits.tokens_per_minute)
local continues = limits and (has_rates or limits.max_running) and goes_on(ARGV[6])
if limits and limits.max_running then
  local most = limits.max_running
  if not continues and num_running(ARGV[3], now_ms(), tonumber(ARGV[9])) >= most then
    return {"QUOTA", "max_running", integer(most), "1", most > 0 and "1000" or ""}
  end
  running = continues and ARGV[6] or ARGV[7]
end
if has_rates and not continues then
  local asked = {1, ARGV[4] + (tonumber(ARGV[5]) or math.huge)}
  -- Reading the base model's record costs as much as all else of a charge: only where it decides.
  if limits.tokens_per_minute and asked[2] > burst_of(limits, QUOTAS[2]) then
    asked[2] = math.min(asked[2], context_of(kind, name, version) or tonumber(ARGV[4]))
  end
  local refusal, tokens = charge(ARGV[3], limits, is_default, asked)
  if refusal then return {"QUOTA", unpack(refusal)} end
  num_charged, tokens_charged = 1, tokens
end
if running ~= "" then pcall(runs, ARGV[3], running, ARGV[7], now_ms(), tonumber(ARGV[8])) end
local digest = redis.call("HGET", ADAPTER .. name, "identity:" .. version)
digest = digest and string.match(digest, "^([^:]*):")
local now, members = now_ms(), {}
-- A prompt of an activated LoRA begins as the base model's does: Resolved.prefix_digest.
local is_activated = string.find(record, '"invocation_tokens":', 1, true)
local author = is_activated and "" or string.sub(digest or "", 1, 8)
for i = 10, #ARGV do members[i - 9] = author .. ARGV[i] end
local planes = {}
for _, id in ipairs(live_data_planes()) do
  local plane = redis.call("HMGET", DATA_PLANE .. id,
    "endpoint", "base_model", "load", "last_heartbeat_ms", "num_placed", "outlook",
    "incarnation")
  local tier = ""
  if digest then
    if redis.call("SISMEMBER", RESIDENCY_POOL .. id, digest) == 1 then
      tier = "pool"
    elseif redis.call("SISMEMBER", RESIDENCY_HOST .. id, digest) == 1 then
      tier = "host"
    elseif redis.call("SISMEMBER", RESIDENCY_DISK .. id, digest) == 1 then
      tier = "disk"
    end
  end
  table.insert(planes, table.concat({id, plane[1], plane[2], plane[3], plane[4], plane[5], tier,
    plane[6] or "", table.concat(sent_to(id, plane[7], members, now), ",")}, "\t"))
end
-- They end in reserve.lua. Where Redis takes no writes, the request is placed all the same.
local number = redis.pcall("HINCRBY", ADMISSIONS, "begun", 1)
redis.pcall("PEXPIRE", ADMISSIONS, 2000)
local refusal = ""
if type(number) ~= "number" then number, refusal = 0, number.err or "it takes no writes" end
local ended = tonumber(redis.call("HGET", ADMISSIONS, "ended") or "0")
return {kind, integer(now), redis.call("GET", SIGNING_KEY_ID) or "", name, version, record,
  source, table.concat(planes, "\n"), redis.call("HGET", ADAPTER .. name, "private:" .. version) or "",
  number, math.max(number - 1 - ended, 0), limits and limits.max_priority or "",
  num_charged, tokens_charged, running, refusal}
