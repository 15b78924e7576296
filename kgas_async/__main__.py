"""``python -m kgas_async``."""

from ._cli import main

main()
