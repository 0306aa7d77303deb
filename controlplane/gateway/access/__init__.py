"""Who may ask the gateway for what: API keys, where it is started with a file of them.

scope        what a key is good for
keys         the file's content: each key's hash, tenant, scopes
key_file     reading and changing the file
needed       what each method and path needs
caller       whose call the running code is
guard        lets calls in, over gRPC and HTTP
watched      files that are read again when they change
"""
