-- how long a report holds in ms, JSON {{tenant, first ticket, ticket, whether it has ended}, ...}
local now, ms = now_ms(), tonumber(ARGV[1])
for _, each in ipairs(cjson.decode(ARGV[2])) do
  local tenant, request, ticket, has_ended = unpack(each)
  if has_ended then
    runs_no_more(tenant, request, ticket)
  else
    still_runs(tenant, request, ticket, now, ms)
  end
end
return 1
