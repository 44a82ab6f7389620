"""Sockets, TLS, HTTP/1.1 and WebSocket for the rooms above. Knows no relay."""
