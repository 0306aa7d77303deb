"""gRPC handlers: translate, call the domain, translate back."""
