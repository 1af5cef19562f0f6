"""The command line: settings, commands, and nothing that a command does not need."""
