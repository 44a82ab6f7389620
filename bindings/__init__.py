"""The catalogue of relay bindings: one TOML file a binding, data only."""
