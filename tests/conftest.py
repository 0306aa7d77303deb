"""What all tests share. No test reaches beyond 127.0.0.1."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Models here are tiny: more threads than one only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
