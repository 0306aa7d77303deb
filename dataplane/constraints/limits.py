"""Bounds of constraints. Everything in one is the caller's, and to be taken for hostile."""

MAX_TEXT_BYTES = 1 << 16
"""Of a JSON schema, a grammar, or all choices together."""

MAX_REGEX_BYTES = 8192
"""Of one regular expression: what its automaton takes grows with the square."""

MAX_REGEX_PARTS = 20_000
"""Characters and classes of a regular expression, its repetitions written out."""

MAX_CHOICES = 256
MAX_DEPTH = 64
"""Objects and arrays within each other in a JSON schema; brackets within each other elsewhere."""

MAX_RULES = 500
"""Of a grammar: those that need each other are followed on the stack."""

MAX_INDENT = 32
"""Of a new line between two tokens of JSON, so that no model fills its answer with white space."""

MAX_LEXER_STATES = 20_000
"""Of one constraint, 1 to 2 kB each."""

TRIAL_STEPS = 24
TRIAL_FOLLOW_CPU_S = 0.2
"""What following that text may take, beyond compiling."""

MASK_CPU_S = 0.001
MASK_CPU_S_PER_TOKEN = 25e-9
BURST_CPU_S = 0.2
MAX_COUNTED_CPU_S = 0.09
SHARE = 0.1
"""What grammars may take of the step loop: so much for each token (`mask_cpu_s`), which ordinary
ones take a twentieth of; beyond that, all together, so much at once and this share of it in the
long run. A regular expression as simple as `[^<>]{1,200}` is held against every token of the
vocabulary, at 8 to 15 ns each where this was measured; half of what it may take.
No token counts for more than MAX_COUNTED_CPU_S: where a host takes the processor away from a
virtual machine, that time is a thread's too, so that two bad measurements must not end a request.
"""


def mask_cpu_s(vocab_size: int) -> float:
    return max(MASK_CPU_S, MASK_CPU_S_PER_TOKEN * vocab_size)


TRIAL_CPU_S = 2
TRIAL_WALL_S = 20.0
TRIAL_BYTES = 64 << 20
"""What trying a constraint out may take, beyond the tokenizer."""
