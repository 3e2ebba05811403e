"""Which stages a system has, what is done, resumed or stale, and the manifests."""
