"""`python -m polymodal`, which torchrun needs, is the same as `polymodal`."""

from polymodal.cli import main

if __name__ == "__main__":
    main()
