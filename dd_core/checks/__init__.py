"""Is everything there, whole and in range, and does this machine compute rightly? Problems come as sentences."""
