-- digest, base model, one data plane or "", directive, what to do with the pin ("set", "clear" or
-- ""), most directives that may be waiting, "1" when whoever is told must hold the adapter already
-- -> {"OK", {ids of those who are told}} or {why not, detail}
local digest, base, only, json, pin, max_waiting, must_hold = unpack(ARGV)
local told = {}
for _, id in ipairs(live_data_planes()) do
  if redis.call("HGET", DATA_PLANE .. id, "base_model") == base and (only == "" or only == id) then
    table.insert(told, id)
  end
end
if only ~= "" and #told == 0 then return {"UNKNOWN"} end
for _, id in ipairs(told) do
  if must_hold == "1" and redis.call("SISMEMBER", RESIDENCY_POOL .. id, digest) == 0
      and redis.call("SISMEMBER", RESIDENCY_HOST .. id, digest) == 0
      and redis.call("SISMEMBER", RESIDENCY_DISK .. id, digest) == 0 then
    return {"ABSENT", id}
  end
end
for _, id in ipairs(told) do
  if redis.call("ZCARD", DIRECTIVES .. id) >= tonumber(max_waiting) then return {"FULL", id} end
end
local unloads = cjson.decode(json).action == "unload"
for _, id in ipairs(told) do
  tell(id, json)
  if unloads then hold_off(id, digest .. ":" .. base) end
end
if pin == "set" then redis.call("HSET", PINS, digest, json) end
-- Where one alone is told to let go, the others keep it, and so do those that join later.
if pin == "clear" and only == "" then redis.call("HDEL", PINS, digest) end
return {"OK", told}
