"""The client's side: workloads, drivers, measures. Never imports torch.

workload    what is sent: requests in phases, and their prompts
generators  the workloads slora, truefoundry, closed, oversubscribed: pure functions of a seed
target      an endpoint that serves; grpc_target and openai_target are the two kinds
driver      sends a phase, open or closed loop, and records each request
lag         whether the client itself kept up
metrics     records -> percentiles, rates, goodput
run         all phases against a target -> the report; report_file, live and plot show it
"""
