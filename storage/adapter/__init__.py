"""The PEFT adapter format: parsing, identity, and fit with a base model."""
