-- last name of the page before or "", names to look at, base model or ""
-- -> {adapters in all, last name looked at or "", whether that was the end, dumps}
local after, limit, base = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local from = after == "" and "-" or "(" .. after
local names = redis.call("ZRANGEBYLEX", ADAPTERS, from, "+", "LIMIT", 0, limit)
local dumps = {}
for _, name in ipairs(names) do
  local keep = true
  if base ~= "" then
    local current = redis.call("HGET", ADAPTER .. name, "current")
    local identity = redis.call("HGET", ADAPTER .. name, "identity:" .. current)
    keep = string.match(identity, "^[^:]*:(.*)$") == base
  end
  if keep then table.insert(dumps, dump(name)) end
end
return {redis.call("ZCARD", ADAPTERS), names[#names] or "", #names < limit and 1 or 0, dumps}
