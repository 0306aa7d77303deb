-- What several scripts need. Every script is atomic: it sees and leaves a consistent registry.

local function now_ms()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function integer(n)
  return string.format("%.0f", n)
end

-- name, version, record, source of what `model` means among adapters; nil when nothing.
local function resolve(model)
  local name, version = string.match(model, "^([^@]*)@(%d+)$")
  if not name then
    name = model
    local alias = redis.call("HMGET", ALIAS .. model, "adapter", "version")
    if alias[1] then
      name = alias[1]
      if alias[2] ~= "0" then version = alias[2] end
    end
  end
  version = version or redis.call("HGET", ADAPTER .. name, "current")
  if not version then return nil end
  local found = redis.call("HMGET", ADAPTER .. name, "version:" .. version, "source:" .. version)
  if not found[1] then return nil end
  return name, version, found[1], found[2]
end

-- {name, adapter hash, {{alias, version}, ...}}
local function dump(name)
  local aliases = {}
  for _, alias in ipairs(redis.call("SMEMBERS", ALIASES_OF .. name)) do
    table.insert(aliases, {alias, redis.call("HGET", ALIAS .. alias, "version")})
  end
  return {name, redis.call("HGETALL", ADAPTER .. name), aliases}
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
  local adapter = redis.call("HGET", ALIAS .. alias, "adapter")
  if not adapter then return false end
  redis.call("DEL", ALIAS .. alias)
  redis.call("SREM", ALIASES_OF .. adapter, alias)
  return true
end

-- Ids whose lease holds; the others are forgotten on the way.
local function live_data_planes()
  local live = {}
  for _, id in ipairs(redis.call("SMEMBERS", DATA_PLANES)) do
    if redis.call("EXISTS", DATA_PLANE .. id) == 1 then
      table.insert(live, id)
    else
      redis.call("SREM", DATA_PLANES, id)
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
