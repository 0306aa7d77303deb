-- alias -> 1, or 0 when unknown
return drop_alias(ARGV[1]) and 1 or 0
