"""Contracts: the WSDL and XSD documents of a service, read, rewritten for the relay, and turned into clients."""
