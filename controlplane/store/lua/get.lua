-- model -> {version, dump}, or false
local name, version = resolve(ARGV[1])
if not name then return false end
return {version, dump(name)}
