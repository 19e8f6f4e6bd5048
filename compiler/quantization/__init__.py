"""Shards to codes: nested bit planes, or GOBO's independent copies."""
