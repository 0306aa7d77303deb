-- model -> {version, dump, how many targets requests may go to}, or false. Of an alias with several
-- targets: the heaviest.
local name, version = resolve(ARGV[1])
if not name then return false end
local num_drawn = 0
for _, target in ipairs(targets_of(ARGV[1]) or {}) do
  if target[3] > 0 then num_drawn = num_drawn + 1 end
end
return {version, dump(name), num_drawn}
