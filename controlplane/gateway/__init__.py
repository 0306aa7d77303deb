"""The stateless edge: one address for clients, over gRPC and HTTP."""
