"""The listener: keeps relays online from inside the private network and answers what senders ask."""

from wcfrelay.listener.control import RelayListener, Status

__all__ = ["RelayListener", "Status"]
