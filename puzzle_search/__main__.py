"""``python -m puzzle_search``, as ``torchrun -m puzzle_search`` starts it."""

from puzzle_search.cli.main import main

main()
