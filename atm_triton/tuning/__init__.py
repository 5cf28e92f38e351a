"""Which launch configuration for which shape: looked up in tables, measured by ``tune``."""
