"""wcfrelay: a self-hosted relay for WCF Relay and Hybrid Connections integrations."""

__version__ = "0.1.0"
