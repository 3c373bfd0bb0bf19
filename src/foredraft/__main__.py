"""`python -m foredraft`, which `torchrun -m foredraft` needs too."""

from foredraft.cli.main import main

if __name__ == "__main__":
    main()
