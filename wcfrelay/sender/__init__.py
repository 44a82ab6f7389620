"""Sending through a relay."""
