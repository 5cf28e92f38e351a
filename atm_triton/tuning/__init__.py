"""Launch configurations by shape: looked up in tables, measured by ``tune``."""
