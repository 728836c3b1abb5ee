"""A page to look at a release: `dpldm app`."""
