-- What several scripts need. Every script is atomic: it sees and leaves a consistent registry.

local function now_ms()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function integer(n)
  return string.format("%.0f", n)
end

-- {{adapter, version ("0" follows the current one), weight}, ...} of an alias; nil when there is none.
local function targets_of(alias)
  local record = redis.call("HMGET", ALIAS .. alias, "adapter", "version", "targets")
  if not record[1] then return nil end
  if record[3] then return cjson.decode(record[3]) end
  return {{record[1], record[2], 1}}
end

-- Of an alias's targets the one that `key` goes to, by weighted rendezvous: each target draws a time,
-- exponential with its weight as the rate, and the soonest wins. So each has its weight's share, and
-- one whose weight grows draws keys from the others and gives none back. Without a key: the heaviest.
local function drawn(alias, targets, key)
  if #targets == 1 then return targets[1] end
  local best, least = nil, math.huge
  for _, target in ipairs(targets) do
    local adapter, version, weight = unpack(target)
    local time = weight > 0 and -weight or math.huge
    if weight > 0 and key then
      local hash = redis.sha1hex(alias .. "\0" .. adapter .. "@" .. version .. "\0" .. key)
      local uniform = (tonumber(string.sub(hash, 1, 8), 16) + 0.5) / 2 ^ 32
      time = -math.log(uniform) / weight
    end
    if time < least then best, least = target, time end
  end
  return best
end

-- name, version, record, source of what `model` means among adapters; nil when nothing. key: see
-- `drawn`.
local function resolve(model, key)
  local name, version = string.match(model, "^([^@]*)@(%d+)$")
  if not name then
    name = model
    local targets = targets_of(model)
    if targets then
      local target = drawn(model, targets, key)
      name = target[1]
      if target[2] ~= "0" then version = target[2] end
    end
  end
  version = version or redis.call("HGET", ADAPTER .. name, "current")
  if not version then return nil end
  local found = redis.call("HMGET", ADAPTER .. name, "version:" .. version, "source:" .. version)
  if not found[1] then return nil end
  return name, version, found[1], found[2]
end

local function points_to(targets, name, version)
  for _, target in ipairs(targets) do
    if target[1] == name and (not version or target[2] == version) then return true end
  end
  return false
end

-- {name, adapter hash, {{alias, adapter, version, targets or ""}, ...}}
local function dump(name)
  local aliases = {}
  for _, alias in ipairs(redis.call("SMEMBERS", ALIASES_OF .. name)) do
    local targets = targets_of(alias)
    -- An older control plane that moves an alias forgets only where its first target was.
    if targets and points_to(targets, name) then
      local record = redis.call("HMGET", ALIAS .. alias, "adapter", "version", "targets")
      table.insert(aliases, {alias, record[1], record[2], record[3] or ""})
    end
  end
  return {name, redis.call("HGETALL", ADAPTER .. name), aliases}
end

-- version: "0" is the current one.
local function base_model_of(name, version)
  if version == "0" then version = redis.call("HGET", ADAPTER .. name, "current") end
  return string.match(redis.call("HGET", ADAPTER .. name, "identity:" .. version), "^[^:]*:(.*)$")
end

-- The alias that would mix base models if the current version of `name` were one of `base`; or nil.
local function mixed_by(name, base)
  for _, alias in ipairs(redis.call("SMEMBERS", ALIASES_OF .. name)) do
    local targets = targets_of(alias)
    if targets and points_to(targets, name, "0") then
      for _, target in ipairs(targets) do
        local follows = target[1] == name and target[2] == "0"
        if not follows and base_model_of(target[1], target[2]) ~= base then return alias end
      end
    end
  end
  return nil
end

-- The present current version, if another, goes to the history of at most `max_history`.
local function make_current(name, version, max_history)
  local current = redis.call("HGET", ADAPTER .. name, "current")
  if current == version then return end
  if current then
    redis.call("RPUSH", HISTORY .. name, current)
    redis.call("LTRIM", HISTORY .. name, -max_history, -1)
  end
  redis.call("HSET", ADAPTER .. name, "current", version)
end

local function drop_alias(alias)
  local targets = targets_of(alias)
  if not targets then return false end
  redis.call("DEL", ALIAS .. alias)
  for _, target in ipairs(targets) do redis.call("SREM", ALIASES_OF .. target[1], alias) end
  return true
end

-- A clock goes on by less than this between two looks at it, unless it was set back.
local CLOCK_TOLERANCE_MS = 1000

-- The clock was set back since the last report: the lease is as long as it was, and begins now. Else it
-- would outlive its data plane by as much as the clock was set.
local function begin_lease_anew(key, last_ms, now)
  local lease_ms = redis.call("PTTL", key) - (last_ms - now)
  redis.pcall("PEXPIRE", key, integer(math.max(lease_ms, 1)))
  redis.pcall("HSET", key, "last_heartbeat_ms", integer(now))
end

-- Ids whose lease holds; the others are forgotten on the way, where Redis takes writes.
local function live_data_planes()
  local live, now = {}, now_ms()
  for _, id in ipairs(redis.call("SMEMBERS", DATA_PLANES)) do
    local last_ms = tonumber(redis.call("HGET", DATA_PLANE .. id, "last_heartbeat_ms") or nil)
    if last_ms then
      if last_ms > now + CLOCK_TOLERANCE_MS then begin_lease_anew(DATA_PLANE .. id, last_ms, now) end
      table.insert(live, id)
    else
      redis.pcall("SREM", DATA_PLANES, id)
    end
  end
  return live
end

-- Adds a directive for a data plane, as JSON; its number tells equal ones apart.
local function add_directive(id, json, expires_ms)
  local number = redis.call("HINCRBY", DATA_PLANE .. id, "num_directives", 1)
  redis.call("ZADD", DIRECTIVES .. id, number, number .. " " .. json)
  redis.call("PEXPIRE", DIRECTIVES .. id, expires_ms)
end

-- Adds a directive for a data plane whose lease holds.
local function tell(id, json)
  add_directive(id, json, math.max(redis.call("PTTL", DATA_PLANE .. id), 1) * 2)
end

local function ticket_keys()
  return redis.call("HGETALL", TICKET_KEYS)
end

-- A version of an adapter that is a merge is known to its components, as long as it is made of them.
-- components: {name, version, name, version, ...}
local function drop_components(name, version)
  local json = redis.call("HGET", ADAPTER .. name, "components:" .. version)
  if not json then return end
  local components = cjson.decode(json)
  for i = 1, #components, 2 do
    redis.call("SREM", MERGES_OF .. components[i], components[i + 1] .. " " .. name .. "@" .. version)
  end
  redis.call("HDEL", ADAPTER .. name, "components:" .. version)
end

local function set_components(name, version, components)
  drop_components(name, version)
  if #components == 0 then return end
  for i = 1, #components, 2 do
    if components[i] ~= name or components[i + 1] ~= version then
      redis.call("SADD", MERGES_OF .. components[i], components[i + 1] .. " " .. name .. "@" .. version)
    end
  end
  redis.call("HSET", ADAPTER .. name, "components:" .. version, cjson.encode(components))
end

-- merge@version, version of `name` ("0": any) that it is made of; nil when there is none. Of a whole
-- adapter those merges that are versions of its own do not count.
local function merged_into(name, version)
  local merges = redis.call("SMEMBERS", MERGES_OF .. name)
  table.sort(merges)
  for _, entry in ipairs(merges) do
    local number, merge, merge_version = string.match(entry, "^(%d+) (.*)@(%d+)$")
    if number == version or (version == "0" and merge ~= name) then
      return merge .. "@" .. merge_version, number
    end
  end
  return nil
end
