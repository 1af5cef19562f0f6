"""Command line: settings and commands. Each command imports only what it needs."""
