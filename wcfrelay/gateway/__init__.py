"""The gateway: faces towards senders and listeners, the relays between them, and what they need."""
