"""``python -m sememe`` is the same as the ``sememe`` command."""

from sememe.cli.app import main

if __name__ == "__main__":
    main()
