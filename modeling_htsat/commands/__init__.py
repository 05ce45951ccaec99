"""What `htsat` does, a module for each command: `add_arguments(parser)` says what it takes, `run(options)` does it."""
