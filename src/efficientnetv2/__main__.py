"""``python -m efficientnetv2``: the program where its script is not on the path, and as torchrun starts it."""

from efficientnetv2.cli import main

if __name__ == "__main__":
    main()
