"""``python -m kgas_async``."""

if __name__ == "__main__":  # worker processes import this module again
    from ._entry import main

    main()
