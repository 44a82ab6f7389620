"""Sans-IO protocol cores: bytes to events and back. No reactor, socket, clock, random source or logging."""
