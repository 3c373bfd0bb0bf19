"""`python -m foredraft.cli`, the same as `python -m foredraft`."""

from foredraft.cli.main import main

if __name__ == "__main__":
    main()
