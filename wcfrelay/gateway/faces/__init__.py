"""Faces: each reads just enough of a connection to know its address, then hands it on."""
