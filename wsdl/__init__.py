"""Contracts and schemas that ship with wcfrelay, data only."""
