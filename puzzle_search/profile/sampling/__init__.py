"""When points are timed, how often, and which come next."""
