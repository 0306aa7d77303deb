"""The OpenAI API over the relay."""
