"""One file a provider: build the request, call, hand back the answer."""
