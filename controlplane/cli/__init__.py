"""The `chorale` command: commands for operators, one command per role, and `chorale up`."""
