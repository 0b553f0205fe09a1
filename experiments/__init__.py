"""Programs and configs: thin, from flags to the library."""
