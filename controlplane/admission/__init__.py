"""From a model name to a signed ticket."""
