"""The six topics, as data: one TOML file each."""
