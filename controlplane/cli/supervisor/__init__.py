"""`chorale up`: starts every part as a process of its own, keeps them alive, stops them in order.

process          one child: start, output, stop
keeper           one part, started again when it dies
store            the embedded Redis
log_file         a part's log, bounded in size
ports            which ports are free
data_dir         the data dir and its lock
demo_assets      where the demo model and its adapters lie
plan             the options of `up`, and each part's command line
readiness        whether the whole answers
supervise        all of it together
"""
