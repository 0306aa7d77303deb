-- JSON {{tenant, requests, tokens, first ticket or "", ticket}, ...}: of requests that were charged, or
-- counted as running where there is a first ticket, and placed nowhere
for _, charge in ipairs(cjson.decode(ARGV[1])) do
  local tenant, requests, tokens, request, ticket = unpack(charge)
  if requests > 0 then give_back(tenant, requests, tokens) end
  if request ~= "" then runs_no_more(tenant, request, ticket) end
end
return 1
