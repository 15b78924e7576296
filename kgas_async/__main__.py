"""``python -m kgas_async``."""

from ._entry import main

if __name__ == "__main__":  # worker processes import this module again
    main()
